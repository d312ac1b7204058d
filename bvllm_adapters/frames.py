"""What reading gives, from whatever source: the frames of one video with their times.

Axes: T frames, H and W the height and width of the upright picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Times = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Choose = Callable[[Times, float], Indices]
"""(T,) times and the duration, in seconds -> indices of the frames to read, ascending."""


class VideoError(ValueError):
    """A source cannot be read; says which and why."""


class VideoWarning(UserWarning):
    """A source was read in part; says how much."""


@dataclass(frozen=True, eq=False)
class Video:
    """The frames read from one source. An image is a video of one frame.

    Args:
        frames: (T, H, W, 3) uint8 RGB, upright.
        seconds: (T,) float64 when each is shown, from the first frame of the source; increasing.
        source: what was read: a path, "array", "image" or "list of 3 images".
        is_image: whether the source is a single still image.
        frame_count: how many frames the source holds.
        duration: how long the source is, in seconds.
    """

    frames: Frames
    seconds: Times
    source: str
    is_image: bool
    frame_count: int
    duration: float


def stack(frames: Iterator[Frames], count: int, progress: Progress | None) -> Frames:
    """`count` frames of one size as one array, filled as they come."""
    first = next(frames)
    out = np.empty((count, *first.shape), np.uint8)
    out[0] = first
    if progress:
        progress(1, count)
    for done, frame in enumerate(frames, start=1):
        out[done] = frame
        if progress:
            progress(done + 1, count)
    return out
