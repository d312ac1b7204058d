"""Options that several commands have."""

from __future__ import annotations

import argparse


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
