"""The selector that a command asks for."""

from __future__ import annotations

import argparse
from typing import Any


def add_selector(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--selector",
        help="coverage, relevance, uniform, random, top-k, best-of-bins, inverse-transform or "
        "k-center (relevance with a --scout, else coverage, which needs no weights)",
    )
    parser.add_argument("--scout", help="folder or hub id of a CLIP or SigLIP that reads QUESTION")


def reads_question(options: argparse.Namespace) -> bool:
    """Whether the selector asked for compares frames with the question."""
    from bvllm_adapters.selectors.names import BLIND, QUESTION_BLIND

    return options.scout is not None and options.selector not in (*BLIND, *QUESTION_BLIND)


def asked_selector(selector: str | None, scout: str | None, device: Any, dtype: Any) -> Any:
    """The one asked for by --selector and --scout, where and in which numbers its scout is to run.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: see `named_selector`.
    """
    from bvllm_adapters.selectors.names import named_selector

    name = selector or ("coverage" if scout is None else "relevance")
    if scout is None:
        return named_selector(name).eval()
    from bvllm_adapters.selectors.relevance import RelevanceSelector

    reader = RelevanceSelector.from_pretrained(scout, dtype=dtype).to(device)
    return named_selector(name, reader).eval()
