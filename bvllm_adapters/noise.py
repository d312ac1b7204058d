"""Where a batch's noise comes from, for hosts whose forward() takes no generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

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
