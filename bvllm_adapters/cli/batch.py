"""`bvllm batch`: a table of questions about videos in, a line of results for each out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bvllm_adapters.cli.options import (
    add_model,
    add_placement,
    add_share,
    add_skip_similar,
    add_table,
    add_untrained,
    given,
)
from bvllm_adapters.cli.selecting import add_selector

if TYPE_CHECKING:
    from bvllm_adapters.bulk.answers import AskRows
    from bvllm_adapters.tables.table import Table

TEXT = "answer a table of questions about videos, each read once; it goes on where it was stopped"

OF_ASKING = (
    "question outside_media fps max_frames max_tokens max_new_tokens batch_size workers"
).split()
OF_RUN = "rows videos max_errors retry_errors".split()


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "table",
        metavar="TABLE",
        help="JSON lines, CSV or parquet with video, question and any other columns; or a folder "
        "of videos",
    )
    parser.add_argument("question", nargs="?", help="of rows that have none, as a folder's")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="JSON lines: a row's answer, tokens, frames with their times and seconds, or its "
        "error, as soon as it is done; one that is there goes on",
    )
    add_share(parser)
    add_model(parser)
    add_untrained(parser)
    add_selector(parser)
    parser.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    parser.add_argument("--max-new-tokens", type=int, help="length of an answer at most (128)")
    parser.add_argument("--batch-size", type=int, help="questions answered at a time (1)")
    add_table(parser)
    add_skip_similar(parser)
    add_placement(parser)


def run(options: argparse.Namespace) -> int:
    from bvllm_adapters.bulk.run import run_table
    from bvllm_adapters.cli.progress import row_progress

    table, media = asked_table(options)
    work = asker(options, media)
    with row_progress() as progress:
        found = run_table(work, table, options.out, progress=progress, **given(options, OF_RUN))
    print(told(found, len(table.rows), str(options.out)))
    return 0


def asked_table(options: argparse.Namespace) -> tuple[Table, Path]:
    """The table and the folder that its videos are named from.

    Raises: before a model is loaded.
        ValueError: none of the share's rows can be asked, or a wrong --out. OSError: it cannot be
            written.
    """
    from bvllm_adapters.bulk.shards import share_of
    from bvllm_adapters.bulk.video_row import check_some, video_row
    from bvllm_adapters.bulk.video_table import table_of
    from bvllm_adapters.tables.results import open_to_append

    table, media = table_of(options.table, options.media)
    outside = bool(options.outside_media)
    check_some(
        share_of(table, options.rows, options.videos),
        lambda row: video_row(row, media, outside=outside, question=options.question),
        "TABLE",
    )
    open_to_append(options.out, "--out").close()
    return table, media


def asker(options: argparse.Namespace, media: Path) -> AskRows:
    """The model that the options name, which asks as they say."""
    from bvllm_adapters.bulk.answers import AskRows
    from bvllm_adapters.cli.asked_model import model_of
    from bvllm_adapters.seeing.encoding import Encoding

    model, processor = model_of(options)
    encoding = Encoding(skip_similar=options.skip_similar)
    return AskRows(model, processor, media=media, encoding=encoding, **given(options, OF_ASKING))


def told(rows: list[dict[str, Any]], of: int, out: str) -> str:
    """What came of all; the first that failed is told on stderr."""
    errors = [row["error"] for row in rows if "error" in row]
    if errors:
        print(f"bvllm: {len(errors)} rows failed; the first: {errors[0]}", file=sys.stderr)
    share = "" if len(rows) == of else f" of the table's {of}"
    return f"{len(rows)} rows{share} in {out}, {len(rows) - len(errors)} without an error"
