"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any


def add_model(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Which one to ask; what may stand in place of --model is for the caller to add."""
    parser.add_argument("--adapter", help="folder or hub id of an adapter for the model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="folder or hub id; without it, the demo's model")
    return which


def add_asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    add_skip_similar(parser)
    parser.add_argument("--fps", type=float, default=1.0, help="frames read per second (1)")
    parser.add_argument("--max-new-tokens", type=int, help="length of the answer at most (128)")
    add_placement(parser)


def add_skip_similar(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--skip-similar",
        type=float,
        metavar="LEVELS",
        help="of 255: frames that differ less from the last one share its features (off)",
    )


def add_table(group: argparse._ActionsContainer, *, reading: bool = True) -> None:
    """What every command has that takes a table of videos; values that were not given are None.

    Args:
        reading: whether --fps is an option of tables alone.
    """
    group.add_argument("--media", help="folder that videos are named from (the table's)")
    group.add_argument("--outside-media", action="store_true", default=None, help="let the table "
                       "name videos that lie outside of that folder")  # fmt: skip
    if reading:
        group.add_argument("--fps", type=float, help="frames read per second (1)")
    group.add_argument("--max-frames", type=int, help="read of a video at most (all)")
    group.add_argument("--max-errors", type=float, metavar="SHARE", help="of rows that may fail "
                       "before it stops (0.5)")  # fmt: skip
    group.add_argument("--retry-errors", action="store_true", default=None, help="take rows again "
                       "that failed before")  # fmt: skip


def add_share(group: argparse._ActionsContainer) -> None:
    """Which rows of a table are this process' own."""
    group.add_argument("--rows", metavar="I::N", help="a share of the rows: of N processes the "
                       "I-th takes every N-th from row I, counted from 0; or FROM:TO")  # fmt: skip
    group.add_argument("--videos", metavar="I::N", help="the same share of the videos, each with "
                       "all of its rows, so that one process reads it")  # fmt: skip
    group.add_argument("--workers", type=int, help="threads that read the next videos meanwhile "
                       "(1)")  # fmt: skip


def given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Of the options with these names, those that were given, in the order of the names."""
    named = {name: getattr(options, name) for name in names}
    return {name: value for name, value in named.items() if value is not None}


def add_placement(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", help="as torch names it (the GPU, if there is one)")
    dtypes = ["float32", "float16", "bfloat16"]
    parser.add_argument(
        "--dtype", choices=dtypes, help="of the weights (bfloat16 on a GPU, else float32)"
    )


def add_untrained(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="ask a --model without adapter all the same, by a tokenizer of random weights",
    )


def counts(text: str) -> list[int]:
    """ "32,64" -> [32, 64]"""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted counts as 32,64") from None
