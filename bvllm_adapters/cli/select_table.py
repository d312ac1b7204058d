"""`bvllm select` of a table of videos, or of a folder of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bvllm_adapters.cli.options import add_share, add_table, given
from bvllm_adapters.cli.selecting import asked_selector, reads_question

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq")
RESULTS = "results.jsonl"  # in the folder of what is written
ONE_VIDEO = ("query", "start", "end", "report")  # options of one video alone


def arguments(group: argparse._ActionsContainer) -> None:
    add_share(group)
    add_table(group, reading=False)


def is_table(video: str) -> bool:
    """Whether what is named is a table by its name, or a folder that holds videos.

    A folder of images is one video.
    """
    path = Path(video)
    if path.suffix.lower() in TABLES:
        return not path.is_dir()
    if not path.is_dir():
        return False
    from bvllm_adapters.bulk.video_table import video_files
    from bvllm_adapters.video.stills import IMAGE_SUFFIXES

    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir()):
        return False
    return next(video_files(path), None) is not None


def check_none(options: argparse.Namespace) -> None:
    """ValueError if one video is asked about with options of tables."""
    group = argparse.ArgumentParser(add_help=False)
    arguments(group)
    for name in ("times", *vars(group.parse_args([]))):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')}: got it with one video, wanted it with a table or a "
                "folder of videos"
            )


def run(options: argparse.Namespace) -> int:
    from bvllm_adapters.bulk.chosen import select_batch
    from bvllm_adapters.bulk.shards import share_of
    from bvllm_adapters.bulk.video_table import table_of
    from bvllm_adapters.cli.batch import told
    from bvllm_adapters.cli.placement import placement
    from bvllm_adapters.cli.progress import row_progress

    for name in ONE_VIDEO:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: got it with a table, wanted it with one video")
    table, media = table_of(options.video, options.media)
    own = share_of(table, options.rows, options.videos)
    if reads_question(options) and not options.question.strip():
        for row in own:
            if not {"question", "query"} & {*row.values}:
                raise ValueError(
                    f"question: got none for {row.place}, wanted one, as the scout compares frames "
                    "with it"
                )
    where: dict[str, Any] = {"out": options.times}
    folder = options.out or options.messages
    if folder is not None:
        if folder == "-":
            raise ValueError("--messages: got - with a table, wanted a folder")
        _make(Path(folder), "--out" if options.out else "--messages")
        save = "frames" if options.out else "messages"
        where = {"out": Path(folder) / RESULTS, "folder": folder, "save": save}
    selector = asked_selector(options.selector, options.scout, *placement(options))
    passed = (
        "question rows videos outside_media fps max_frames workers size max_errors retry_errors"
    ).split()
    with row_progress() as progress:
        found = select_batch(
            table,
            num_frames=options.frames,
            selector=selector,
            media=media,
            progress=progress,
            **where,
            **given(options, passed),
        )
    print(told(found, len(table.rows), str(where["out"])))
    return 0


def _make(folder: Path, name: str) -> None:
    """A folder that holds what was chosen for a table, or nothing."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{name}: got {folder}, which is a file, wanted a folder")
    if folder.is_dir() and not (folder / RESULTS).exists() and any(folder.iterdir()):
        raise ValueError(
            f"{name}: got {folder}, which holds files, but no {RESULTS} to go on with, wanted a "
            "new or empty folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{name}: {folder}: cannot be made ({error.strerror or error})") from error
