"""`bvllm select`: frames of a video for a model that cannot be opened."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bvllm_adapters.cli import select_table
from bvllm_adapters.cli.options import add_placement
from bvllm_adapters.cli.selecting import add_selector, asked_selector, reads_question

TEXT = "choose frames of a video, or of a table of videos, as files or as messages for a server"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", help="video file, image file or folder of frames; or a table of "
                        "videos (.jsonl, .csv, .parquet), or a folder of them")  # fmt: skip
    parser.add_argument("question", nargs="?", default="", help="what will be asked about it")
    parser.add_argument("--frames", type=int, default=32, help="how many are chosen (32)")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument(
        "--out", metavar="FOLDER", help="JPEG files, and frames.json with their times and scores"
    )
    to.add_argument(
        "--messages",
        metavar="FILE",
        help="JSON messages of OpenAI's chat completions, which vLLM and others take; - for stdout",
    )
    to.add_argument(
        "--report", metavar="FILE", help="a page that shows them (.html, .png), or data (.json)"
    )
    to.add_argument(
        "--times", metavar="FILE", help="of a table: which frames, with times and scores, alone"
    )
    add_selector(parser)
    parser.add_argument("--query", help="what the scout reads in place of QUESTION, as it is")
    parser.add_argument("--fps", type=float, default=1.0, help="frames looked at per second (1)")
    parser.add_argument("--start", type=float, help="seconds; look at nothing before")
    parser.add_argument("--end", type=float, help="seconds; look at nothing from there on")
    parser.add_argument(
        "--size", type=int, help="longest edge in pixels at most (512 in messages; files: any)"
    )
    parser.add_argument(
        "--force", action="store_true", help="put --out into a folder that holds files"
    )
    add_placement(parser)
    select_table.arguments(parser.add_argument_group("of a table, or of a folder of videos"))


def run(options: argparse.Namespace) -> int:
    if select_table.is_table(options.video):
        return select_table.run(options)
    select_table.check_none(options)
    from tqdm import tqdm

    from bvllm_adapters.checks import check_count
    from bvllm_adapters.selectors.export import (
        MESSAGE_SIZE,
        check_free,
        messages,
        save_frames,
        save_messages,
    )
    from bvllm_adapters.selectors.frames_of import select_frames
    from bvllm_adapters.trace import check_file

    check_count("frames", options.frames)
    if options.size is not None:
        check_count("size", options.size, least=16)
    if options.out is not None:  # before anything is read
        check_free(Path(options.out), replace=options.force)
    if options.report is not None:
        check_file(options.report)
    selector = _selector(options)
    query = {} if options.query is None else {"query": options.query}
    with tqdm(desc="reading", unit="frame", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        chosen = select_frames(
            options.video,
            options.question,
            num_frames=options.frames,
            selector=selector,
            fps=options.fps,
            start=options.start,
            end=options.end,
            progress=progress,
            **query,
        )
    if chosen.selection.note is not None:
        print(f"bvllm: {chosen.selection.note}", file=sys.stderr)
    if options.report is not None:
        chosen.trace.save(options.report)
        print(f"{len(chosen.frames)} frames in {options.report}")
        return 0
    if options.messages is not None:
        found = messages(chosen, options.question, size=options.size or MESSAGE_SIZE)
        if options.messages == "-":
            print(json.dumps(found))
        else:
            save_messages(found, options.messages)
            print(f"{len(chosen.frames)} frames in {options.messages}")
        return 0
    names = save_frames(
        chosen, options.out, question=options.question, size=options.size, replace=options.force
    )
    scores = [None] * len(names) if chosen.scores is None else chosen.scores.tolist()
    for name, seconds, score in zip(names, chosen.seconds.tolist(), scores, strict=True):
        print(f"{name}  {seconds:8.1f} s" + ("" if score is None else f"  score {score:.2f}"))
    print(f"{len(names)} frames in {options.out}")
    return 0


def _selector(options: argparse.Namespace) -> Any:
    """The one asked for."""
    from bvllm_adapters.cli.placement import placement

    unasked = not (options.question.strip() or (options.query or "").strip())
    if unasked and reads_question(options):
        raise ValueError("question: got none, wanted one, as the scout compares frames with it")
    return asked_selector(options.selector, options.scout, *placement(options))
