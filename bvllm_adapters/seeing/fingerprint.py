"""By what weights, files and frames are known again."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bvllm_adapters.video.frames import FrameSource, VideoError
from bvllm_adapters.video.stills import images_in

PLACES = 8191  # that a checksum tells apart, a prime
SAMPLED = 16  # values of each tensor that a stamp is of
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


@torch.no_grad()
def weights_stamp(module: nn.Module | None) -> tuple[Any, ...]:
    """Changes when weights are written to, in this process: 4 ms for the 300 million of a ViT-L,
    whose fingerprint takes a thousand times as long.

    How often each was written to, as torch counts it, and a few of its values, as writing to
    `.data` is not counted. Offloaded weights have neither.
    """
    if module is None:
        return ()
    # Not of buffers: to change the dtype there and back makes them anew.
    counts = [
        None if value.is_inference() else value._version
        for value in module.parameters()
        if not value.is_meta
    ]
    sampled: dict[torch.device, list[Tensor]] = {}
    for value in (*module.parameters(), *module.buffers()):
        # Classes that quantise need not know how to view their bits.
        if value.numel() and not value.is_meta and type(value.data) is Tensor:
            few = value.data.flatten()[:: -(-value.numel() // SAMPLED)]
            total = few.view(_WHOLE[few.element_size()]).long().sum()
            sampled.setdefault(few.device, []).append(total)
    sums = [torch.stack(totals).tolist() for totals in sampled.values()]
    return counts, sums


def path_fingerprint(path: Path) -> str:
    """Of every byte of a file, or of each image in a folder, and its name."""
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
    """Name, size and time of a file, or of each image in a folder; None if it is not there."""
    if path is None:
        return None
    try:
        found = [(file.name, file.stat()) for file in _files(path)]
    except (OSError, VideoError):  # there are no images in it any more
        return None
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _files(path: Path) -> list[Path]:
    """The images of a folder, whatever else lies among them; of a file itself."""
    return images_in(path) if path.is_dir() else [path]
