"""What reaches the BalancedTokenizer and the language model while a host runs.

Axes: S positions of a prompt, N visual tokens, D width of the language model, V words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.features import VisualTokens
from bvllm_adapters.hosts.base import tokenizer_of

WORDS = 4096  # embedded at a time


@contextmanager
def asked_of(model: Any) -> Iterator[list[tuple[Any, list[VisualTokens]]]]:
    """The questions and the visual tokens of each call of a model's BalancedTokenizer."""
    calls: list[tuple[Any, list[VisualTokens]]] = []

    def note(_: nn.Module, args: Any, kwargs: Any, made: list[VisualTokens]) -> None:
        calls.append((kwargs["questions"] if "questions" in kwargs else args[1], made))

    handle = tokenizer_of(model).register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def read_by(model: Any, apart: nn.Module) -> Iterator[list[Tensor]]:
    """(B, S, D) embeddings that each call of the language model's layers begins with.

    Args:
        apart: the vision tower, whose layers are no language model's.
    """
    read: list[Tensor] = []
    width = model.get_input_embeddings().weight.shape[-1]
    other = {id(part) for whole in _apart(model, apart) for part in whole.modules()}

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        given = kwargs.get("inputs_embeds")
        if isinstance(given, Tensor) and given.dim() == 3 and given.shape[2] == width:
            read.append(given.detach())

    layered = [
        part
        for part in model.modules()
        if isinstance(getattr(part, "layers", None), nn.ModuleList) and id(part) not in other
    ]
    handles = [part.register_forward_pre_hook(note, with_kwargs=True) for part in layered]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _apart(model: Any, tower: nn.Module) -> list[nn.Module]:
    tokenizer = getattr(model, "balanced_tokenizer", None)
    return [tower] if tokenizer is None else [tower, tokenizer]


@torch.no_grad()
def not_words(model: Any, prompt: Tensor) -> Tensor:
    """(S,) bool, which positions of a prompt hold no word's embedding, and so something seen.

    Args:
        prompt: (S, D), what the language model reads.
    """
    embed = model.get_input_embeddings()
    found = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for begin in range(0, embed.weight.shape[0], WORDS):
        ids = torch.arange(begin, min(begin + WORDS, embed.weight.shape[0]), device=prompt.device)
        words = embed(ids).to(prompt)
        alike = (prompt[:, None, :4] == words[None, :, :4]).all(dim=2)
        for place, word in alike.nonzero().tolist():
            found[place] |= torch.equal(prompt[place], words[word])
    return ~found
