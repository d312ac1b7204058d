"""The tokens of chosen groups, as a model's own tower and projector make them.

Axes: k chosen groups, P tokens of a group, D width of the language model, levels further tokens of
the tower's deeper layers that go along with each (deepstack).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bvllm_transformers.families import Family
from bvllm_transformers.splits import Inputs


def encoder_arguments(model: Any, call: str) -> list[str]:
    """What an encoder of the model takes."""
    encoder = getattr(model.base_model, call, None)
    if encoder is None:
        return []
    return [name for name in inspect.signature(encoder).parameters if name != "kwargs"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder gave.

    Args:
        tokens: (n, D (1 + levels)), a visual input after the other.
        sizes: how many are of each. as_tensor: whether it came as one tensor, not as a list.
    """

    tokens: Tensor
    sizes: list[int]
    as_tensor: bool


def encode(model: Any, family: Family, inputs: Inputs, video: int, groups: Tensor) -> Encoded:
    """Chosen groups of one video.

    Args:
        inputs: arguments of forward(), of the whole batch. video: which of its videos.
        groups: (k,) int64 indices.
    """
    arguments = family.split.take(inputs, video, groups)
    for name in encoder_arguments(model, family.call):
        if name in arguments or inputs.get(name) is None:
            continue
        value = inputs[name]
        of_each = isinstance(value, Tensor) and value.dim() == 1
        arguments[name] = value[video : video + 1] if of_each else value
    if family.pixels_as is not None:
        arguments[family.pixels_as] = arguments.pop(family.split.pixels)
    return _encoded(getattr(model.base_model, family.call)(**arguments, return_dict=True))


def encode_images(model: Any, inputs: Inputs) -> Encoded:
    """All images of a batch."""
    arguments = {
        name: inputs[name]
        for name in encoder_arguments(model, "get_image_features")
        if inputs.get(name) is not None
    }
    return _encoded(model.base_model.get_image_features(**arguments, return_dict=True))


def _encoded(out: Any) -> Encoded:
    made = out.pooler_output
    sizes = [part.shape[:-1].numel() for part in made]
    return Encoded(with_levels(out), sizes, isinstance(made, Tensor))


def with_levels(out: Any) -> Tensor:
    """What an encoder gives -> (n, D (1 + levels)), levels behind the tokens they go along with."""
    levels = getattr(out, "deepstack_features", None) or []
    return torch.cat([flat(out.pooler_output), *map(flat, levels)], dim=1)


def flat(tokens: Tensor | Sequence[Tensor]) -> Tensor:
    """(..., D), or a list of (n, D) -> (N, D)."""
    if not isinstance(tokens, Tensor):
        tokens = torch.cat([part.flatten(0, -2) for part in tokens])
    return tokens.flatten(0, -2)


@dataclass
class Deepstacked(BaseModelOutputWithPooling):
    """With further levels, as models with deepstack read them. A dataclass, as else generate()
    loses them where it cuts a prompt into chunks."""

    deepstack_features: Any = None


def as_output(tokens: Sequence[Tensor], width: int, as_tensor: bool) -> Any:
    """Tokens of all visual inputs, in the order of their placeholders, as `mm_encoder_outputs`
    takes them.

    Args:
        tokens: (n, D (1 + levels)) of each. width: D.
        as_tensor: whether the model wants one tensor; then (N, 1, D), as generate() with beams
            counts what is in each row.
    """
    parts = [part.split(width, dim=1) for part in tokens]
    if as_tensor:
        return BaseModelOutputWithPooling(pooler_output=torch.cat([p[0] for p in parts])[:, None])
    first: Any = [part[0] for part in parts]  # a list, which models of several sizes take
    made = Deepstacked(pooler_output=first)
    if len(parts[0]) > 1:
        made.deepstack_features = [
            list(level) for level in zip(*(p[1:] for p in parts), strict=True)
        ]
    return made
