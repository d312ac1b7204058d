"""What tests of families share: the shared models under a budget, and prompts put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from prompts import CLIPS, PACKED, PIXELS, placeholders
from tiny import Family, Inputs
from torch import Tensor

import bvllm_adapters as bvllm
from bvllm_adapters.budget_merger import BudgetMerger
from bvllm_adapters.features import Selection, VisualTokens
from bvllm_transformers import budget

HOST = "bvllm_transformers:HOST"
PLENTY = 10**6
# One block without text of the groups, and positions of three axes: groups keep their times.
KEEPS_TIMES = {"ernie4_5_vl_moe", "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3_omni_moe"}


@contextmanager
def wrapped(model: Any, **how: Any) -> Iterator[Any]:
    """The model that all tests share, under a budget for a while."""
    bvllm.wrap(model, host=HOST, **how)
    try:
        yield model
    finally:
        bvllm.unwrap(model)


@contextmanager
def always_spliced() -> Iterator[None]:
    """Prompts of which all is kept go the long way, too."""
    keeps_all = budget.keeps_all
    budget.keeps_all = lambda *args, **kwargs: False
    try:
        yield
    finally:
        budget.keeps_all = keeps_all


class Picks(BudgetMerger):
    """Leaves tokens as they are, and of each frame as many as it may have, drawn by lot."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.taken: list[tuple[int, int]] = []  # (frame, place)

    def forward(
        self, tokens: Tensor, max_tokens: Any, selection: Selection | None = None
    ) -> VisualTokens:
        assert selection is not None
        shares = self._shares(max_tokens, [tokens.shape[1]] * len(tokens), selection)
        self.taken = []
        generator = torch.Generator().manual_seed(self.seed)  # the same for each call
        for frame, share in enumerate(shares):
            drawn = torch.randperm(tokens.shape[1], generator=generator)[:share]
            self.taken += [(frame, place) for place in sorted(drawn.tolist())]
        slot, place = torch.tensor(self.taken).T
        return VisualTokens(
            tokens[slot, place], slot, torch.ones(len(slot)), selection, torch.zeros(0), place
        )


def forward(model: Any, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
    return logits


def greedy(model: Any, inputs: Inputs, **how: Any) -> Tensor:
    settings = {"max_new_tokens": 4, "do_sample": False, **how}
    ids: Tensor = model.generate(**inputs, **settings)
    return ids


def decoder_of(model: Any) -> Any:
    return model.get_decoder()


def in_one_prompt(family: Family, first: Inputs, second: Inputs) -> Inputs:
    """Two videos in one prompt, one behind the other, with the words of both."""
    shape = first["input_ids"].shape
    out = {}
    for name, value in first.items():
        values = [value, second[name]]
        if value.shape == shape:
            out[name] = torch.cat(values, dim=1)
        elif name in PIXELS and family.name in PACKED:
            out[name] = torch.cat(values, dim=3)
        elif name in PIXELS and family.name == "smolvlm":
            out[name] = torch.cat(values, dim=1)  # (B, T, ...) are those of a prompt
        elif name == "video_token_pooling":
            shift = first["pixel_values_videos"].shape[:2].numel()
            out[name] = torch.cat([value, torch.where(values[1] < 0, -1, values[1] + shift)])
        else:
            out[name] = torch.cat(values)
    return out


def count(inputs: Sequence[int] | Tensor, family: Family) -> int:
    """Placeholders in ids."""
    which = family.inputs()["input_ids"][0, placeholders(family.inputs())[0]]
    return int((torch.as_tensor(inputs) == which).sum())


def stacked(family: Family) -> bool:
    """Whether the clips of a batch are of one length."""
    return family.name in CLIPS
