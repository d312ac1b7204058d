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
PLACES = 8191  # that a checksum tells apart, a prime
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def write(file: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Tensors and what is known about them, as JSON.

    Raises:
        ValueError: the file's folder is not there.
    """
    if not Path(file).parent.is_dir():
        raise ValueError(f"file: got {file}, wanted one in a folder that is there")
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
            # Copied: what is mapped is gone if the file is cut short, and the process with it.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    about: dict[str, Any] = json.loads(metadata["about"])
    return tensors, about


@torch.no_grad()
def weights_fingerprint(module: nn.Module) -> str:
    """Changes with the names, shapes, dtypes and values of weights; the same on every device."""
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]  # seldom used

    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        of, _, last = name.rpartition(".")
        owner = module.get_submodule(of)
        with align_module_device(owner) if value.is_meta else nullcontext():  # if offloaded
            total = _checksum(getattr(owner, last))
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} {total}".encode())
    return digest.hexdigest()[:16]


def _checksum(value: Tensor) -> int:
    """Of all bits and their places. Whole numbers, since sums of others depend on the device."""
    bits = value.detach().contiguous().flatten().view(_WHOLE[value.element_size()])
    places = torch.arange(len(bits), device=bits.device) % PLACES + 1
    return int((bits.long() * places).sum())


def path_fingerprint(path: Path) -> str:
    """Of every byte of a file, or of each in a folder, and its name."""
    digest = hashlib.sha256()
    inside = sorted(path.iterdir()) if path.is_dir() else []
    for one in inside or [path]:
        if one.is_file():
            digest.update(f"{one.name if inside else ''} {one.stat().st_size} ".encode())
            with one.open("rb") as file:
                while part := file.read(2**20):
                    digest.update(part)
    return digest.hexdigest()[:16]


def frames_fingerprint(source: FrameSource) -> str:
    """Of every pixel."""
    digest = hashlib.sha256()
    for frame in source.read(np.arange(len(source))):
        digest.update(f"{frame.shape} ".encode())
        digest.update(frame.tobytes())
    return digest.hexdigest()[:16]
