"""Frames of a video as plain data, with metadata by which a model reads their true times.

A processor that is handed frames works out their times from metadata: index / fps. Where it is told
nothing it takes a steady rate for granted, and the times that the model reads are wrong, without a
warning. Where it makes one of two successive frames, it takes the mean of their times.

Axes: K frames, H and W of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bvllm_adapters.checks import check_count
from bvllm_adapters.engines.readings import reading_of
from bvllm_adapters.video.frames import Frames, Times, Video

CLOCK = 1000.0  # "frames" a second: as if the video had one each millisecond
LEAST_SIDE = 16  # pixels of the longest edge
UNEVEN = 0.1  # of a step: how far a frame may be from where even ones would be


@dataclass(frozen=True, eq=False)
class SentFrames:
    """What is sent of a video.

    Args:
        frames: (K, H, W, 3) uint8 RGB, in time order.
        each: how many times each of them is sent, one right after another; 2 where a model makes
            one of two, so that it keeps its own time. That costs as many tokens as two.
        metadata: under the names of transformers' VideoMetadata: total_num_frames, fps, duration in
            seconds, and frames_indices, one for each frame that is sent, ints.
    """

    frames: Frames
    each: int
    metadata: dict[str, Any]

    @property
    def repeated(self) -> Frames:
        """(K each, H, W, 3) the frames as they are sent."""
        return self.frames.repeat(self.each, axis=0) if self.each > 1 else self.frames

    @property
    def seconds(self) -> list[float]:
        """When each frame that is sent is shown, by the metadata."""
        fps = self.metadata["fps"]
        return [index / fps for index in self.metadata["frames_indices"]]


def sent_frames(chosen: Video, model: str, *, size: int | None = None) -> SentFrames:
    """Frames of a video, such as `select_frames` gives, so that models of one type read their true
    times.

    Args:
        model: model_type of config.json, such as "qwen3_vl"; see `readings`.
        size: longest edge in pixels at most; None: as they are.

    Raises:
        ValueError: an image; no frames; times that are none, or not in order; a model whose reading
            is not known; frames at uneven times for one that knows a single step for a whole clip.
    """
    reading = reading_of(model)
    if chosen.is_image:
        raise ValueError(
            f"chosen: got an image ({chosen.source}), wanted frames of a video; it goes as an "
            "image, see bvllm_adapters.selectors.export.messages"
        )
    check_times(chosen.seconds, chosen.duration)
    frames = resized(chosen.frames, size)
    if reading.times == "even":
        return SentFrames(frames, 1, even(chosen.seconds, model))
    each = 2 if reading.pairs and reading.times == "each" else 1
    return SentFrames(frames, each, by_milliseconds(chosen.seconds, chosen.duration, each))


def check_times(seconds: Times, duration: float) -> None:
    """ValueError unless frames have times, in order; a frame may be there more than once."""
    given = np.asarray(seconds, dtype=np.float64)
    good = given.size and np.isfinite(given).all() and given[0] >= 0 and (np.diff(given) >= 0).all()
    if not good or not np.isfinite(duration):
        raise ValueError(
            f"chosen: got frames at {given.tolist()!s:.80} seconds of {duration}, wanted one or "
            "more, each with its time, 0 or later, never decreasing"
        )


def by_milliseconds(seconds: Times, duration: float, each: int = 1) -> dict[str, Any]:
    """Metadata as if the video had a frame each millisecond, and these were chosen of them.

    Args:
        seconds: (K,). duration: of the video, in seconds. each: see `SentFrames`.
    """
    indices = np.rint(np.asarray(seconds) * CLOCK).astype(np.int64).repeat(each).tolist()
    # No less than are sent, which a server holds against it.
    total = max(round(duration * CLOCK), indices[-1] + 1, len(indices))
    return {
        "total_num_frames": total,
        "fps": CLOCK,
        "duration": total / CLOCK,
        "frames_indices": indices,
    }


def even(seconds: Times, model: str) -> dict[str, Any]:
    """Metadata of a clip of nothing but these frames, at the step at which they were taken.

    Raises:
        ValueError: they are not about a step apart.
    """
    count = len(seconds)
    step = float(seconds[-1] - seconds[0]) / (count - 1) if count > 1 else 1.0
    apart = float(np.abs(seconds - (seconds[0] + step * np.arange(count))).max())
    if step <= 0 or apart > UNEVEN * step:
        raise ValueError(
            f"chosen: got frames up to {apart:.2f} s away from steps of {step:.2f} s, and a "
            f"{model} counts one step for a whole clip, wanted even ones (selector='uniform'), or "
            "images with a text of their time each, see bvllm_adapters.selectors.export.messages"
        )
    return {
        "total_num_frames": count,
        "fps": 1 / step,
        "duration": count * step,
        "frames_indices": list(range(count)),
    }


def resized(frames: Frames, size: int | None) -> Frames:
    """(K, H, W, 3) -> (K, h, w, 3), the longest edge `size` pixels if it was more."""
    if size is None:
        return frames
    check_count("size", size, least=LEAST_SIDE)
    if max(frames.shape[1:3]) <= size:
        return frames
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return np.stack([np.asarray(image) for image in images])
