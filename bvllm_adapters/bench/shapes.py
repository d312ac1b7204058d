"""Models and tensors that have a shape and no values: what they would take can be counted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")

SHAPES = FakeTensorMode(allow_non_fake_inputs=True)
"""Inside of it, tensors have a shape, a dtype and a device, and no values. Not the meta device:
there, code that asks for the device of its input stumbles."""


def in_shape(model: nn.Module) -> Any:
    """A copy of a model, maybe on the meta device, whose weights have their shapes alone."""
    ghosts: dict[int, Any] = {}
    with SHAPES:
        for buffer in model.buffers():
            ghosts[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for weight in model.parameters():
            empty = torch.empty(weight.shape, dtype=weight.dtype)
            ghosts[id(weight)] = nn.Parameter(empty, requires_grad=False)
    return copy.deepcopy(model, ghosts)


def flops_of(run: Callable[[], T]) -> tuple[T, int]:
    """What `run` gives, and its FLOPs: 2 for each multiply and add of matrix products,
    convolutions and attention; those between single elements are not counted."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def shape_of(run: Callable[[], T]) -> tuple[T, int]:
    """As `flops_of`, of shapes alone."""
    with SHAPES:
        return flops_of(run)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of this shape and no values."""
    with SHAPES:
        return torch.empty(*shape, dtype=dtype)
