"""The tokens of chosen groups, as a model's own tower and projector make them.

Axes: k chosen groups, P tokens of a group, D width of the language model, levels further tokens of
the tower's deeper layers that go along with each (deepstack).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bvllm_transformers.families import Family
from bvllm_transformers.splits import Inputs

# What models read of their encoder's output beside its tokens: Ovis2's embeddings of its brackets,
# and what InstructBlipVideo only hands on to its caller.
MORE = ("visual_indicator_features", "qformer_outputs", "vision_outputs")


def encoder_arguments(model: Any, call: str) -> list[str]:
    """What an encoder of the model takes."""
    encoder = getattr(model.base_model, call, None)
    if encoder is None:
        return []
    names = inspect.signature(encoder).parameters
    return [name for name in names if name not in ("args", "kwargs")]


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder gave.

    Args:
        tokens: (n, D (1 + levels)), a visual input after the other.
        sizes: how many are of each. as_tensor: whether it came as one tensor, not as a list.
        more: what else the model reads of its encoder's output, that is the same of all.
    """

    tokens: Tensor
    sizes: list[int]
    as_tensor: bool
    more: Mapping[str, Any] = field(default_factory=dict)


def encode(model: Any, family: Family, inputs: Inputs, video: int, groups: Tensor) -> Encoded:
    """Chosen groups of one video.

    Args:
        inputs: arguments of forward(), of the whole batch. video: which of its videos.
        groups: (k,) int64 indices.
    """
    arguments = family.split.take(inputs, video, groups)
    for name in encoder_arguments(model, family.call):
        if name not in arguments and inputs.get(name) is not None:
            arguments[name] = inputs[name]
    if family.pixels_as is not None:
        arguments[family.pixels_as] = arguments.pop(family.split.pixels)
    made = _encoded(getattr(model.base_model, family.call)(**arguments, return_dict=True))
    return replace(made, tokens=family.split.picked(inputs, video, groups, made.tokens))


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
    more = {name: getattr(out, name, None) for name in MORE if hasattr(out, name)}
    return Encoded(with_levels(out), sizes, isinstance(made, Tensor), more)


def on_device(inputs: Inputs, device: Any) -> dict[str, Any]:
    """Arguments whose tensors are where the model is; those without memory stay so."""
    return {
        name: value.to(device) if isinstance(value, Tensor) and not value.is_meta else value
        for name, value in inputs.items()
    }


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


def as_output(
    tokens: Sequence[Tensor],
    width: int,
    as_tensor: bool,
    more: Mapping[str, Any] | None = None,
    *,
    anew: bool = False,
) -> Any:
    """Tokens of all visual inputs, in the order of their placeholders, as `mm_encoder_outputs`
    takes them.

    Args:
        tokens: (n, D (1 + levels)) of each. width: D.
        as_tensor: whether the model wants one tensor; then (N, 1, D), as generate() with beams
            counts what is in each row. more: see `Encoded`.
        anew: whether tokens were made anew of the encoder's and have no further levels. Models
            with deepstack add each level to what their first layers make of a token. Of tokens
            that a Q-Former made there is none to add, so it is a level of zeros, which changes
            nothing: they are read as words are.
    """
    parts = [part.split(width, dim=1) for part in tokens]
    own: Any = [p[0] for p in parts]  # a list, which models of several sizes take
    made = Deepstacked(pooler_output=torch.cat(own)[:, None] if as_tensor else own)
    for name, value in (more or {}).items():
        setattr(made, name, value)
    if anew and not as_tensor:
        made.deepstack_features = [[torch.zeros_like(part) for part in own]]
    elif len(parts[0]) > 1:
        made.deepstack_features = [
            list(level) for level in zip(*(p[1:] for p in parts), strict=True)
        ]
    return made
