"""Frames -> the pixels that a model's own processor makes, of a size that the budget has room for.

Axes: k groups (see `splits`) of n frames, H and W of a picture, P tokens of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.image_utils import SizeDict
from transformers.video_processing_utils import BaseVideoProcessor

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.selectors.split import frames_and_tokens, least_tokens
from bvllm_transformers.families import Family
from bvllm_transformers.splits import Clip, Grid

MOST = 2**20  # tokens of a frame, before it is known how many there are
Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """What pixels and prompt of one video or image have to agree on.

    Args:
        height, width: of its frames, once they are `scaled`.
        patches_per_frame: P.
        scaled: whether frames are brought to this size before the processor gets them.
        beside: tokens that stand behind a video and are of no frame.
    """

    height: int
    width: int
    patches_per_frame: int
    scaled: bool = False
    beside: int = 0
    is_image: bool = False


def frames_per_look(family: Family, processor: Any) -> int:
    """How many frames make a group."""
    if not isinstance(family.split, Grid):
        return 1
    return int(getattr(processor.video_processor, "temporal_patch_size", 1) or 1)


def check_shows_videos(processor: Any) -> None:
    """HostError for a processor that makes pixels of images alone."""
    if getattr(processor, "video_processor", None) is None:
        raise HostError(
            f"processor: got a {type(processor).__name__} without video_processor, wanted one that "
            "takes videos; bvllm.select_frames chooses frames to be shown as images"
        )


def lay_out(
    family: Family,
    config: BalancedTokenizerConfig,
    processor: Any,
    height: int,
    width: int,
    groups: int,
    native: Callable[[], int],
) -> Layout:
    """Pictures of as many tokens as the budget has for each of the frames that will be chosen, or
    a few more, which are merged; never more than the processor makes by itself. Of a sampler,
    which reads them all and makes a few, as many as the processor makes.

    Args:
        height, width: of the video's frames. groups: T.
        native: P of a processor that makes all pictures of one size.
    """
    video = processor.video_processor

    def wanted(tokens: int, least: int) -> tuple[int, int]:
        return frames_and_tokens(
            config.max_tokens, groups, tokens,
            frames=config.num_frames, tokens_per_frame=config.tokens_per_frame, least=least,
        )  # fmt: skip

    if not isinstance(family.split, Grid):
        return Layout(height, width, native(), beside=family.tail)
    shown, _ = wanted(MOST, least_tokens(1))
    ghost = ghosts(frames_per_look(family, processor) * shown, height, width)
    _, h, w = processed(video, ghost)["video_grid_thw"][0].tolist()
    square = video.merge_size
    rows, columns = h // square, w // square
    tokens = rows * columns
    if config.sampler == "none":
        _, tokens = wanted(tokens, least_tokens(tokens))
    if tokens < rows * columns:
        less = math.sqrt(tokens / (rows * columns))
        rows, columns = math.ceil(rows * less), math.ceil(columns * less)
    unit = square * video.patch_size
    return Layout(rows * unit, columns * unit, rows * columns, scaled=True, beside=family.tail)


def ghosts(frames: int, height: int, width: int) -> Tensor:
    """A video that takes no memory, of which a processor tells what it would make of a real one."""
    return torch.empty((frames, 3, height, width), dtype=torch.uint8, device="meta")


def every_frame(video: Any) -> dict[str, bool]:
    """The settings with which a video processor keeps all frames: ours is what chooses."""
    settings = {"do_sample_frames": False}
    if hasattr(video, "use_token_compression"):
        settings["use_token_compression"] = False
    return settings


def processed(video: Any, frames: Tensor, **settings: Any) -> Any:
    """(T, 3, H, W) uint8 frames, as the video processor makes them, all of them."""
    settings |= every_frame(video)
    return video(videos=[frames], return_tensors="pt", device=frames.device, **settings)


def video_pixels(processor: Any, frames: Pictures, layout: Layout | None) -> Tensor:
    """(k, n, H, W, 3) or (k, H, W, 3) -> (k, ...) pixels: (k, h, w, features) of a grid's patches,
    or (k, 3, S, S)."""
    groups = frames if frames.ndim == 5 else frames[:, None]
    video = processor.video_processor
    missing = (getattr(video, "temporal_patch_size", None) or 1) - groups.shape[1]
    if missing > 0:  # an image: the one frame stands for a group
        groups = np.concatenate([groups, groups[:, -1:].repeat(missing, axis=1)], axis=1)
    shown = torch.from_numpy(groups).flatten(0, 1).movedim(-1, 1)
    settings = {}
    if layout is not None and layout.scaled:
        size = SizeDict(height=layout.height, width=layout.width)
        shown = BaseVideoProcessor.resize(video, shown, size, resample=video.resample)
        settings["do_resize"] = False
    made = processed(video, shown, **settings)
    if "video_grid_thw" in made:
        _, h, w = made["video_grid_thw"][0].tolist()
        pixels: Tensor = made["pixel_values_videos"].reshape(len(groups), h, w, -1)
        return pixels
    name = "pixel_values_videos" if "pixel_values_videos" in made else "pixel_values"
    whole: Tensor = made[name]
    return whole.reshape(len(groups), *whole.shape[-3:])


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """One image: the arguments of forward() that hold it, as the image processor makes them."""

    inputs: Mapping[str, Any]

    def __len__(self) -> int:
        return 1

    @property
    def tensor(self) -> Tensor:
        """Its pixels alone."""
        pixels: Tensor = self.inputs["pixel_values"]
        return pixels


def encoder_inputs(family: Family, pixels: Tensor) -> dict[str, Any]:
    """Pixels of `video_pixels` as the arguments of forward() that hold a video."""
    if isinstance(family.split, Grid):
        k, h, w, _ = pixels.shape
        grid = torch.tensor([[k, h, w]], device=pixels.device)
        return {family.split.pixels: pixels.flatten(0, 2), family.split.grid: grid}
    return {family.split.pixels: pixels[None] if isinstance(family.split, Clip) else pixels}
