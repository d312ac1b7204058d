"""What surrounds a call: the question and the noise, for models whose forward() takes neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_asked: ContextVar[str | tuple[str, ...] | None] = ContextVar("bvllm_question", default=None)


@contextmanager
def asking(question: str | Sequence[str]) -> Iterator[None]:
    """What is asked, to hosts whose own scripts call the model without saying it.

    Inside the block, in this thread, it goes before whatever could be read from a prompt.

    Args:
        question: by all prompts of a batch, or that of each.
    """
    if not isinstance(question, str):
        question = tuple(question)
    token = _asked.set(question)
    try:
        yield
    finally:
        _asked.reset(token)


def asked(prompt: int = 0) -> str | None:
    """What the innermost `asking` block says of a prompt, by its place in the batch, or None."""
    said = _asked.get()
    if not isinstance(said, tuple):
        return said
    if prompt >= len(said):
        raise ValueError(f"question: got {len(said)}, wanted one for each prompt of the batch")
    return said[prompt]


_seeds: ContextVar[tuple[int, ...] | None] = ContextVar("bvllm_noise", default=None)


@contextmanager
def noise_from(seeds: Sequence[int]) -> Iterator[None]:
    """Training's noise from a seed for each visual input of a batch, in reading order.

    Inside the block, in this thread, a sample's noise is its own: it does not depend on what else
    is in its batch, nor on how many devices share the work.
    """
    token = _seeds.set(tuple(seeds))
    try:
        yield
    finally:
        _seeds.reset(token)


def generators(count: int, device: torch.device) -> list[torch.Generator | None]:
    """One for each of `count` visual inputs; None outside of `noise_from`: torch's global one.

    Raises:
        ValueError: for a block of fewer or more seeds.
    """
    seeds = _seeds.get()
    if seeds is None:
        return [None] * count
    if len(seeds) != count:
        raise ValueError(f"seeds: got {len(seeds)}, wanted {count}, one for each visual input")
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]
