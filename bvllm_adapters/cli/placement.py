"""Where a command's model is and in which numbers: as was asked, or as fits the machine."""

from __future__ import annotations

import argparse

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def device_of(name: str | None) -> torch.device:
    """The device of this name; None: the GPU, if there is one.

    Raises:
        ValueError: for one that is not here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: got {name!r}, wanted one that is here: {reason}") from error


def dtype_of(name: str | None, device: torch.device, *, small: bool = False) -> torch.dtype:
    """The dtype of this name; None: bfloat16 on a GPU, or where `small`, else float32."""
    if name is not None:
        return DTYPES[name]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16 if small or device.type == "cuda" else torch.float32


def placement(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Of --device and --dtype."""
    device = device_of(options.device)
    return device, dtype_of(options.dtype, device)
