"""By what weights, files and frames are known again."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bvllm_adapters.video.frames import FrameSource

PLACES = 8191  # that a checksum tells apart, a prime
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    for one in _files(path):
        if one.is_file():
            name = "" if one is path else one.name
            digest.update(f"{name} {one.stat().st_size} ".encode())
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


def path_stamp(path: Path | None) -> list[tuple[str, int, int]] | None:
    """Name, size and time of a file, or of each in a folder; None if it is not there."""
    if path is None:
        return None
    try:
        found = [(file.name, file.stat()) for file in _files(path)]
    except OSError:
        return None
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _files(path: Path) -> list[Path]:
    """Those in a folder; of a file itself."""
    return sorted(path.iterdir()) if path.is_dir() else [path]
