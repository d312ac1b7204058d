"""A few values of each weight of a model, by which a base is told from another in a moment.

A fingerprint of all bits would take as long as reading the model, and be another for the same
checkpoint in another dtype. These values are compared in the coarser of the two dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bvllm_adapters.weights.json_file import CheckpointError, readable

VALUES = 8  # of each weight, evenly spaced over it
_COARSE = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
_LEAST = 2**-24  # float16 tells no smaller ones apart


@torch.no_grad()
def sampled(model: nn.Module, name_of: Callable[[str], str | None]) -> dict[str, Tensor]:
    """(8,) float32 values of each floating point weight that is on a device.

    Args:
        name_of: a parameter's name -> the name it goes by here; None: it does not count.
    """
    found: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        ours = name_of(name)
        if ours is None or weight.is_meta or not weight.is_floating_point() or not weight.numel():
            continue
        flat = weight.detach().reshape(-1) if weight.is_contiguous() else weight.detach().flatten()
        # An odd step, so that not all are of one column where a width is a power of two.
        places = torch.arange(VALUES, device=flat.device) * (len(flat) // VALUES | 1) % len(flat)
        found[ours] = flat[places].float()
    return {name: values.cpu() for name, values in found.items()}


def dtype_of(model: nn.Module, name_of: Callable[[str], str | None]) -> torch.dtype:
    """Of the first weight that counts; float32 where there is none."""
    return next(
        (
            weight.dtype
            for name, weight in model.named_parameters()
            if name_of(name) is not None and weight.is_floating_point()
        ),
        torch.float32,
    )


def save_sampled(file: Path, values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    metadata = {"format": "pt", "dtype": str(dtype).removeprefix("torch.")}
    # Of a host that is offloaded as a whole there are none, and not every safetensors reads a file
    # without any: no weight has the name of this one.
    none = {"(none)": torch.zeros(VALUES, dtype=torch.float32)}
    save_file(dict(values) or none, file, metadata)


def read_sampled(file: Path) -> tuple[dict[str, Tensor], torch.dtype]:
    """What `save_sampled` wrote. Raises: CheckpointError."""
    with readable(file), safe_open(file, framework="pt") as opened:
        dtype = getattr(torch, (opened.metadata() or {})["dtype"])
        values = {name: opened.get_tensor(name) for name in opened.keys()}
    shapes = {tuple(value.shape) for value in values.values()}
    if not isinstance(dtype, torch.dtype) or shapes - {(VALUES,)}:
        raise CheckpointError(f"{file}: got {dtype} and shapes {shapes}, wanted a dtype, (8,) each")
    return values, dtype


def differing(
    ours: Mapping[str, Tensor], dtype: torch.dtype, saved: Mapping[str, Tensor], other: torch.dtype
) -> list[str]:
    """Names of weights that are of another model: those that both have and whose values differ.

    Args:
        ours, saved: of `sampled`. dtype, other: that the weights were in.

    What only one side has does not count: a model may be offloaded or packed in parts.
    """
    return [
        name
        for name, values in ours.items()
        if name in saved and not _same(values, dtype, saved[name], other)
    ]


def _same(a: Tensor, of_a: torch.dtype, b: Tensor, of_b: torch.dtype) -> bool:
    coarse = {dtype for dtype in (of_a, of_b) if dtype in _COARSE}
    if len(coarse) > 1:  # rounded from what both came from, each in its own way
        room = torch.maximum(a.abs(), b.abs()) * max(_COARSE[dtype] for dtype in coarse) + _LEAST
        return bool(((a - b).abs() <= room).all())
    for dtype in coarse:
        a, b = a.to(dtype).float(), b.to(dtype).float()
    # bfloat16 tells apart smaller numbers than float16, in which they may have been.
    return bool(((a == b) | ((a - b).abs() <= _LEAST)).all())
