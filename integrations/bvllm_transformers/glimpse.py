"""What frames are chosen by, of pixels that a processor has made: pictures, before any tower.

Axes: T groups of a video, C, H, W of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bvllm_adapters.seeing.encoding import as_pictures
from bvllm_transformers.odd_splits import Packed
from bvllm_transformers.splits import Clip, Frames, Grid, PaddedClip, Split

SIDE = 16  # of what stands for a picture that cannot be put together


def pictures(
    config: Any, split: Split, inputs: Mapping[str, Any], video: int, count: int
) -> Tensor | None:
    """(T, 3, H, W) about from 0 to 1, each the mean of its group's frames; None: it is not known
    how the pixels of this family make a picture.

    Args:
        video, count: groups of which video, or from which first on, and T.
    """
    taken = split.take(inputs, video, torch.arange(count))
    pixels: Tensor = taken[split.pixels]
    found = None
    if isinstance(split, Grid):
        found = _of_grid(config, split, taken, count)
    elif isinstance(split, Packed):
        found = _of_columns(pixels, taken[split.sizes])
    elif isinstance(split, Clip | PaddedClip | Frames):
        pixels = pixels.flatten(0, pixels.dim() - 4)
        if pixels.shape[1] % 3 == 0:
            found = pixels.unflatten(1, (-1, 3)).float().mean(dim=1)
    return None if found is None else as_pictures(found)


def blurred(split: Split, inputs: Mapping[str, Any], video: int, count: int) -> Tensor:
    """(T, 3, 16, 16) that stand for pictures: equal frames have equal ones, near ones near ones."""
    parts = [split.take(inputs, video, torch.tensor([i]))[split.pixels] for i in range(count)]
    flat = torch.stack([part.float().flatten()[None] for part in parts])
    small = F.adaptive_avg_pool1d(flat, 3 * SIDE * SIDE)
    return as_pictures(small.view(count, 3, SIDE, SIDE))


def _of_grid(config: Any, split: Grid, taken: Mapping[str, Any], count: int) -> Tensor | None:
    """Rows of patches of a grid, or of several that the groups lie in."""
    vision = _vision(config)
    square = getattr(vision, "spatial_merge_size", 1)
    if taken.get("video_merge_sizes") is not None:
        square = int(taken["video_merge_sizes"][0])
    grid: list[list[int]] = taken[split.grid].tolist()
    parts = taken[split.pixels].split([t * h * w for t, h, w in grid])
    made = [_of_patches(vision, square, *part) for part in zip(parts, grid, strict=True)]
    known = [each for each in made if each is not None]
    if len(known) < len(made) or len({each.shape[1:] for each in known}) > 1:
        return None
    if len(known) == count:  # of each group its grid
        return torch.stack([each.mean(dim=0) for each in known])
    pictures = torch.cat(known)
    if len(pictures) % count:
        return None
    groups: Tensor = pictures.unflatten(0, (count, -1))
    return groups.mean(dim=1)


def _of_columns(pixels: Tensor, sizes: Tensor) -> Tensor | None:
    """(1, 3, patch, columns), patch after patch of each picture."""
    side = pixels.shape[2]
    h, w = sizes[0].tolist()
    if bool((sizes != sizes[0]).any()):
        return None
    patches = pixels[0].float().reshape(3, side, -1, h, w, side)
    return patches.permute(2, 0, 3, 1, 4, 5).reshape(-1, 3, h * side, w * side)


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", config)


def _of_patches(vision: Any, square: int, rows: Tensor, grid: list[int]) -> Tensor | None:
    """Rows of patches (3, t, p, p), which lie in squares that the tower makes one token of."""
    t, h, w = grid
    side = getattr(vision, "patch_size", None)
    if not isinstance(side, int) or rows.shape[1:].numel() % (3 * side * side):
        return None
    if h % square or w % square:
        return None
    patches = rows.float().reshape(t, h // square, w // square, square, square, 3, -1, side, side)
    picture = patches.mean(dim=6).permute(0, 5, 1, 3, 6, 2, 4, 7)
    return picture.reshape(t, 3, h * side, w * side)
