"""What frames are chosen by, of pixels that a processor has made: pictures, before any tower.

Axes: T groups of a video, C, H, W of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bvllm_transformers.splits import Clip, Frames, Grid, Split

SIDE = 16  # of what stands for a picture that cannot be put together
# Pixels are about these numbers away from colours between 0 and 1, whoever normalised them.
MEAN, STD = 0.46, 0.27


def pictures(config: Any, split: Split, inputs: Mapping[str, Any], video: int) -> Tensor | None:
    """(T, 3, H, W) about from 0 to 1, each the mean of its group's frames; None: it is not known
    how the pixels of this family make a picture."""
    count = split.groups(inputs)[video]
    taken = split.take(inputs, video, torch.arange(count))
    pixels: Tensor = taken[split.pixels]
    found = None
    if isinstance(split, Grid):
        found = _of_patches(_vision(config), pixels, taken[split.grid][0].tolist())
    elif isinstance(split, Clip | Frames):
        pixels = pixels.flatten(0, pixels.dim() - 4)
        if pixels.shape[1] % 3 == 0:
            found = pixels.unflatten(1, (-1, 3)).float().mean(dim=1)
    return None if found is None else (found * STD + MEAN).clamp(0, 1)


def blurred(split: Split, inputs: Mapping[str, Any], video: int) -> Tensor:
    """(T, 3, 16, 16) that stand for pictures: equal frames have equal ones, near ones near ones."""
    count = split.groups(inputs)[video]
    taken = split.take(inputs, video, torch.arange(count))
    flat = taken[split.pixels].float().reshape(count, 1, -1)
    small = F.adaptive_avg_pool1d(flat, 3 * SIDE * SIDE)
    return (small.view(count, 3, SIDE, SIDE) * STD + MEAN).clamp(0, 1)


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", config)


def _of_patches(vision: Any, rows: Tensor, grid: list[int]) -> Tensor | None:
    """Rows of patches (3, t, p, p), which lie in squares that the tower makes one token of."""
    t, h, w = grid
    side = getattr(vision, "patch_size", None)
    square = getattr(vision, "spatial_merge_size", 1)
    if not isinstance(side, int) or rows.shape[1:].numel() % (3 * side * side):
        return None
    if h % square or w % square:
        return None
    patches = rows.float().reshape(t, h // square, w // square, square, square, 3, -1, side, side)
    picture = patches.mean(dim=6).permute(0, 5, 1, 3, 6, 2, 4, 7)
    return picture.reshape(t, 3, h * side, w * side)
