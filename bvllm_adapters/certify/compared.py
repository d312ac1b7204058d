"""How what came is held against what was wanted: the message of each check that fails."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-5  # in float32, of the largest number


def same(name: str, got: Any, wanted: Any) -> None:
    """AssertionError unless both are equal, tensors bit for bit."""
    if isinstance(wanted, Tensor) and isinstance(got, Tensor):
        if got.shape == wanted.shape and torch.equal(got, wanted):
            return
        raise AssertionError(f"{name}: {_apart(got, wanted)}, wanted the same bits")
    if got != wanted:
        raise AssertionError(f"{name}: got {_short(got)}, wanted {_short(wanted)}")


def near(name: str, got: Tensor, wanted: Tensor, *, own: float = 0.0) -> None:
    """AssertionError unless both are equal but for rounding: 1e-5 of the largest in float32.

    Args:
        own: what the model without us rounds by, of the largest; twice that is rounding too.
    """
    if got.shape != wanted.shape:
        raise AssertionError(f"{name}: {_apart(got, wanted)}")
    of_largest = max(ROUNDING, 2 * own)
    limit = of_largest * max(1.0, float(wanted.abs().max()))
    error = float((got.float() - wanted.float()).abs().max())
    if not error <= limit:  # NaN is not
        raise AssertionError(f"{name}: got a difference of {error:.2g}, wanted {limit:.2g} at most")


def _apart(got: Tensor, wanted: Tensor) -> str:
    if got.shape != wanted.shape:
        return f"got shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    error = float((got.float() - wanted.float()).abs().max())
    return f"got a difference of {error:.2g}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
