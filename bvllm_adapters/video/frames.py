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


@dataclass(frozen=True, eq=False)
class FrameSource:
    """The frames asked for of one source, not read yet.

    Args:
        seconds, source, is_image, frame_count, duration: as in `Video`.
        read: called with (N,) positions into `seconds`, ascending and distinct, gives those frames
            one by one: (H, W, 3) uint8 RGB, upright, all of one size. Nothing is open until the
            first is asked for, nor after the last or once the generator is closed. It may be
            called any number of times, from any thread, also after a fork. Raises ValueError for
            other positions, and while it is iterated VideoError or `SourceChanged`.
    """

    seconds: Times
    source: str
    is_image: bool
    frame_count: int
    duration: float
    read: Callable[[Indices], Iterator[Frames]]

    def __len__(self) -> int:
        return len(self.seconds)

    @classmethod
    def of(cls, video: Video) -> FrameSource:
        """What has been read already, to be taken frame by frame."""

        def read(positions: Indices) -> Iterator[Frames]:
            return (video.frames[i] for i in check_positions(positions, len(video.seconds)))

        return cls(
            video.seconds, video.source, video.is_image, video.frame_count, video.duration, read
        )


class SourceChanged(Exception):
    """A file does not hold the frames that its packets promised. `source` is what it does hold:
    whoever reads begins anew with that."""

    def __init__(self, source: FrameSource) -> None:
        super().__init__(f"{source.source}: its frames are not those that its packets promised")
        self.source = source


def load(source: FrameSource, progress: Progress | None = None) -> Video:
    """All frames of a source in one array, filled as they come.

    Args:
        progress: called with (frames read, frames to read) after each frame.

    Raises:
        VideoError: for what cannot be read.
    """
    while True:
        try:
            frames = _stack(source, progress)
        except SourceChanged as changed:
            source = changed.source
        else:
            return Video(
                frames,
                source.seconds,
                source.source,
                source.is_image,
                source.frame_count,
                source.duration,
            )


def _stack(source: FrameSource, progress: Progress | None) -> Frames:
    count = len(source)
    out = np.empty(0, np.uint8)
    for i, frame in enumerate(source.read(np.arange(count))):
        if i == 0:
            out = np.empty((count, *frame.shape), np.uint8)
        out[i] = frame
        if progress:
            progress(i + 1, count)
    return out


def check_positions(positions: Indices, count: int) -> Indices:
    """(N,) int64 `positions`, if they are such as `FrameSource.read` takes of `count` frames."""
    given = np.asarray(positions)
    good = given.ndim == 1 and (given.dtype.kind in "iu" or not given.size)
    if not good or (given < 0).any() or (given >= count).any() or (np.diff(given) <= 0).any():
        raise ValueError(
            f"positions: got {positions!r}, wanted ascending distinct integers below {count}"
        )
    return given.astype(np.int64)
