"""What a model has seen of a video, in one safetensors file that knows where it comes from."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bvllm_adapters.checkpoint import CheckpointError
from bvllm_adapters.frames import FrameSource

FORMAT = "bvllm_features/1"
ENDS = 2**16  # bytes at either end of a file
SAMPLES = 64  # values of each tensor that its fingerprint takes; all would take seconds


def write(file: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Tensors and what is known about them, as JSON."""
    metadata = {"format": FORMAT, "about": json.dumps(about)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata)


def read(file: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` wrote.

    Raises:
        CheckpointError: for another kind of file, or a damaged one.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{file}: got a file of format {metadata.get('format')!r}, wanted {FORMAT!r}"
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    about: dict[str, Any] = json.loads(metadata["about"])
    return tensors, about


@torch.no_grad()
def weights_fingerprint(module: nn.Module) -> str:
    """Changes with the names, shapes and values of weights; of each tensor, 64 values are read."""
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]  # here, since few need it

    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        of, _, last = name.rpartition(".")
        owner = module.get_submodule(of)
        with align_module_device(owner) if value.is_meta else nullcontext():  # if offloaded
            flat = getattr(owner, last).reshape(-1)
            step = max(1, len(flat) // SAMPLES)
            digest.update(flat[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def path_fingerprint(path: Path) -> str:
    """Of the size and the first and last 64 KiB of a file, or of each in a folder, and its name."""
    digest = hashlib.sha256()
    inside = sorted(path.iterdir()) if path.is_dir() else []
    for one in inside or [path]:
        if one.is_file():
            size = one.stat().st_size
            digest.update(f"{one.name if inside else ''} {size} ".encode())
            with one.open("rb") as file:
                digest.update(file.read(ENDS))
                file.seek(max(0, size - ENDS))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def frames_fingerprint(source: FrameSource) -> str:
    """Of every pixel."""
    digest = hashlib.sha256()
    for frame in source.read(np.arange(len(source))):
        digest.update(f"{frame.shape} ".encode())
        digest.update(frame.tobytes())
    return digest.hexdigest()[:16]
