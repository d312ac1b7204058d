"""Models and tensors that have a shape and no values: what they would take can be counted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
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
    convolutions and attention; those between single elements are not counted.

    Attention counts all pairs, masked ones too.
    """
    with torch.no_grad(), SpelledOutAttention(), FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


class SpelledOutAttention(TorchFunctionMode):
    """Inside of it attention is the matrix products that it stands for: which of its kernels are
    known to torch's counter depends on torch's version and the device, and the others count as
    nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            func = attention
        return func(*args, **(kwargs or {}))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What F.scaled_dot_product_attention stands for, of the same arguments."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, dim=-3) for t in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(dim=-1), dropout_p) @ value


def counted(what: str, flops: int) -> int:
    """FLOPs of something that has some.

    Raises:
        RuntimeError: there are none, so what it runs is unknown to the counter.
    """
    if flops <= 0:
        raise RuntimeError(f"{what}: counted {flops} FLOPs, wanted more; torch's counter is blind")
    return flops


def shape_of(run: Callable[[], T]) -> tuple[T, int]:
    """As `flops_of`, of shapes alone."""
    with SHAPES:
        return flops_of(run)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of this shape and no values."""
    with SHAPES:
        return torch.empty(*shape, dtype=dtype)
