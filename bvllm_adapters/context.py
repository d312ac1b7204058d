"""What surrounds a call: the question and the noise, for models whose forward() takes neither;
whether somebody wants to know where tokens come from; float32 under autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

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


_looking: ContextVar[bool] = ContextVar("bvllm_looking", default=False)
_maps: ContextVar[list[Tensor] | None] = ContextVar("bvllm_maps", default=None)


@contextmanager
def looking(on: bool = True) -> Iterator[None]:
    """Inside the block, in this thread, stages say where their tokens come from: VisualTokens have
    `members` and `looked`. Tokens are the same bits; outside it costs nothing."""
    token = _looking.set(on)
    try:
        yield
    finally:
        _looking.reset(token)


def is_looking() -> bool:
    """Whether this runs inside of `looking`."""
    return _looking.get()


@contextmanager
def attention_maps() -> Iterator[list[Tensor]]:
    """Inside of `looking`: the (B, Q, N) maps of each layer of a Q-Former that looks at visual
    tokens, as they are made; else none."""
    maps: list[Tensor] = []
    token = _maps.set(maps if is_looking() else None)
    try:
        yield maps
    finally:
        _maps.reset(token)


def noted_maps() -> list[Tensor] | None:
    """Where maps of the innermost `attention_maps` go; None: nobody wants any."""
    return _maps.get()


Round = tuple[Tensor, Tensor, Tensor]
"""(B, N) which stay, in their new order; (B, L) which leave; (B, L) which of the new ones take them
in."""


def members_of(
    merge: Callable[[Tensor, int, list[Round]], Any], tokens: Tensor, shares: Sequence[int]
) -> Tensor:
    """(M, R, H) tokens of M frames -> (M, R) int64: which of all that are left each is in, -1 where
    its frame got none.

    Args:
        merge: (B, R, H) tokens and how many are left of each B -> what it likes; notes its rounds.
    """
    share = torch.tensor(shares, device=tokens.device)
    found = torch.full(tokens.shape[:2], -1, device=tokens.device)
    for left in sorted(set(shares) - {0}):
        of = share == left
        rounds: list[Round] = []
        merge(tokens[of], left, rounds)
        member = torch.arange(tokens.shape[1], device=tokens.device).expand(int(of.sum()), -1)
        for staying, leaving, into in rounds:
            new = staying.new_zeros(len(staying), staying.shape[1] + leaving.shape[1])
            new.scatter_(1, staying, torch.arange(staying.shape[1]).to(new).expand_as(staying))
            member = new.scatter_(1, leaving, into).gather(1, member)
        found[of] = member + (share.cumsum(0) - share)[of][:, None]
    return found


def in_float32(near: Tensor) -> AbstractContextManager[Any]:
    """Inside the block autocast, which may run around it, leaves float32 on this tensor's device
    alone: what is chosen and merged in training is what evaluation would choose and merge."""
    kind = near.device.type
    if near.is_meta or not torch.is_autocast_enabled(kind):  # there is none on the meta device
        return nullcontext()
    return torch.autocast(kind, enabled=False)
