"""What a model has seen of a video, in one safetensors file that knows where it comes from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bvllm_adapters.checkpoint import CheckpointError

FORMAT = "bvllm_features/1"
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
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        flat = value.reshape(-1)
        step = max(1, len(flat) // SAMPLES)
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(flat[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def file_fingerprint(path: str | Path) -> str | None:
    """Of a file's size and of its first and last 64 KiB; None for what is not a file."""
    path = Path(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        size = path.stat().st_size
        digest = hashlib.sha256(f"{size} ".encode() + file.read(2**16))
        file.seek(max(0, size - 2**16))
        digest.update(file.read())
    return digest.hexdigest()[:16]
