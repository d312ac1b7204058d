"""What reading gives, from whatever source: the frames of one video with their times.

Axes: T frames, H and W the height and width of the upright picture.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bvllm_adapters.video.limits import VideoError as VideoError
from bvllm_adapters.video.limits import check_memory

Frames = npt.NDArray[np.uint8]
Times = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Choose = Callable[[Times, float], Indices]
"""(T,) times and the duration, in seconds -> indices of the frames to read, ascending."""


class VideoWarning(UserWarning):
    """A source was read in part, or not quite as it says; says how much."""


def warn(words: str) -> None:
    """A VideoWarning, as of the line that called this library, however deep in it we are."""
    package, frame, level = __name__.partition(".")[0], inspect.currentframe(), 1
    while frame and frame.f_globals.get("__name__", "").startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(words, VideoWarning, stacklevel=level)


@dataclass(frozen=True, eq=False)
class Video:
    """The frames read from one source. An image is a video of one frame.

    Args:
        frames: (T, H, W, 3) uint8 RGB, upright.
        seconds: (T,) float64 when each is shown, from the first frame of the source; increasing.
        source: what was read: a path or URL as it was given, "bytes", "array", "image" or "list of
            3 images".
        is_image: whether the source is a single still image.
        frame_count: how many frames the source holds.
        duration: how long the source is, in seconds: the last frame stays on screen until then.
        track: of several video tracks of a file, which was read; None: there is one.
    """

    frames: Frames
    seconds: Times
    source: str
    is_image: bool
    frame_count: int
    duration: float
    track: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class FrameSource:
    """The frames asked for of one source, not read yet.

    Args:
        seconds, source, is_image, frame_count, duration, track: as in `Video`.
        picture_bytes: of each frame, as (H, W, 3) uint8; 0: not known before it is read.
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
    track: str | None = field(default=None, kw_only=True)
    picture_bytes: int = field(default=0, kw_only=True)

    def __len__(self) -> int:
        return len(self.seconds)

    @classmethod
    def of(cls, video: Video) -> FrameSource:
        """What has been read already, to be taken frame by frame."""

        def read(positions: Indices) -> Iterator[Frames]:
            return (video.frames[i] for i in check_positions(positions, len(video.seconds)))

        return cls(
            video.seconds,
            video.source,
            video.is_image,
            video.frame_count,
            video.duration,
            read,
            track=video.track,
        )


class SourceChanged(Exception):
    """A file does not hold the frames that its packets promised. `source` is what it does hold:
    whoever reads begins anew with that."""

    def __init__(self, source: FrameSource) -> None:
        super().__init__(f"{source.source}: its frames are not those that its packets promised")
        self.source = source


def reading(
    chosen: Indices,
    decoded: Callable[[Indices], Iterator[Frames]],
    changed: Callable[[], FrameSource],
) -> Callable[[Indices], Iterator[Frames]]:
    """`FrameSource.read` of the frames `chosen` of a file.

    Args:
        decoded: frames of these indices, fewer if the file does not hold what it promised.
        changed: what it does hold then; asked for once, as long as it does not raise.
    """
    found = functools.cache(changed)

    def read(positions: Indices) -> Iterator[Frames]:
        return frames(chosen[check_positions(positions, len(chosen))])

    def frames(wanted: Indices) -> Iterator[Frames]:
        given = 0
        for picture in decoded(wanted):
            yield picture
            given += 1
        if given < len(wanted):
            raise SourceChanged(found())

    return read


def load(source: FrameSource, progress: Progress | None = None) -> Video:
    """All frames of a source in one array, filled as they come.

    Args:
        progress: called with (frames read, frames to read) after each frame.

    Raises:
        VideoError: for what cannot be read.
    """
    while True:
        check_memory(source.source, len(source), source.picture_bytes)
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
                track=source.track,
            )


def _stack(source: FrameSource, progress: Progress | None) -> Frames:
    count = len(source)
    out = np.empty(0, np.uint8)
    for i, frame in enumerate(source.read(np.arange(count))):
        if i == 0:
            check_memory(source.source, count, frame.nbytes)
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
