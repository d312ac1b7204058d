"""Frames as a scout wants them, made on whichever device they are.

By the numbers of its image processor, which itself takes pictures of PIL's one by one. The pixels
are those but for the last bit of a byte, which PIL rounds to in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bvllm_adapters.weights.json_file import CheckpointError

_MODES = {2: "bilinear", 3: "bicubic"}  # as PIL numbers them


@dataclass(frozen=True)
class PixelNumbers:
    """Height and width to resize to, or the shortest edge; the crop's; mean, standard deviation."""

    side: int  # of the scout, which takes squares
    shortest_edge: bool  # else both edges
    edge: int
    mode: str
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, frames: Tensor) -> Tensor:
        """(k, 3, H, W) RGB from 0 to 1 -> (k, 3, side, side) float32."""
        height, width = frames.shape[2:]
        size = (self.edge, self.edge)
        if self.shortest_edge:
            short, long = min(height, width), max(height, width)
            other = int(self.edge * long / short)
            size = (self.edge, other) if height <= width else (other, self.edge)
        frames = F.interpolate(frames.float(), size, mode=self.mode, antialias=True).clamp(0, 1)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        frames = frames[:, :, top : top + self.side, left : left + self.side]
        mean, std = (
            torch.tensor(values, device=frames.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (frames * (255 * self.factor) - mean) / std


def pixel_numbers(file: Path, processor: Any, image_size: int) -> PixelNumbers:
    """Those of an image processor that was read from `file`, for a scout of this size.

    Raises:
        CheckpointError: they give other pictures than the scout takes.
    """
    size, crop = (
        {} if value is None else dict(value)
        for value in (processor.size, getattr(processor, "crop_size", None))
    )
    crops = bool(getattr(processor, "do_center_crop", False))
    shortest = size.get("shortest_edge")
    both = {size.get("height"), size.get("width")}
    edges: set[Any] = both if shortest is None else {shortest}
    side = {crop.get("height"), crop.get("width")} if crops else edges
    wrong = shortest is not None and not crops  # pictures of any width
    if wrong or side != {image_size} or len(edges) != 1 or None in edges or min(edges) < image_size:
        raise CheckpointError(
            f"{file}: size, crop_size: got {size} and {crop if crops else None}, "
            f"wanted squares of {image_size} as the model takes"
        )
    if processor.resample not in _MODES:
        raise CheckpointError(
            f"{file}: resample: got {processor.resample}, wanted one of {list(_MODES)}"
        )
    plain = not processor.do_normalize
    return PixelNumbers(
        side=image_size,
        shortest_edge=shortest is not None,
        edge=int(edges.pop()),
        mode=_MODES[processor.resample],
        factor=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=(0.0,) * 3 if plain else tuple(processor.image_mean),
        std=(1.0,) * 3 if plain else tuple(processor.image_std),
    )
