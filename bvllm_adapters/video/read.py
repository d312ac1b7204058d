"""Reading: a video file, image, folder, array or list of images -> frames with their times.

The frames wanted are chosen by the times at which a source shows them, so a variable frame rate
needs no special care. They are read one by one, or all into one array.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bvllm_adapters.config import check_count
from bvllm_adapters.video.file import open_file
from bvllm_adapters.video.frames import (
    FrameSource,
    Indices,
    Progress,
    SourceChanged,
    Times,
    Video,
    VideoError,
    VideoWarning,
    load,
)
from bvllm_adapters.video.stills import stills_at, stills_in

__all__ = [
    "FrameSource",
    "SourceChanged",
    "Video",
    "VideoError",
    "VideoWarning",
    "open_source",
    "pick",
    "read_video",
]

SLACK = 1e-3  # s, by which a frame may come late: some containers round to milliseconds


Source = str | os.PathLike[str] | npt.NDArray[Any] | Image.Image | Sequence[Image.Image] | Video


def read_video(
    source: Source,
    *,
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    progress: Progress | None = None,
) -> Video:
    """Read the frames on screen at `start`, `start + 1 / fps`, ... before `end`, each once.

    The first of them may have come on screen, so have its `seconds`, a little before `start`.

    Args:
        source: a video file, an image file, a folder of image files (in natural order), a
            (T, H, W, 3) or (H, W, 3) uint8 array, a PIL image, or a list of PIL images. Folders,
            arrays and lists are taken as sampled at `fps` already: all their frames are read. A
            `Video` is taken whole, as it was read.
        fps: frames per second of video; None for every frame (and 1 for sampled sources).
        start: seconds from the first frame; None for the beginning.
        end: seconds from the first frame; None, or anything later than the end, for the end.
        max_frames: if more would be read, as many, evenly over all of those, first and last kept.
        progress: called with (frames read, frames to read) after each frame.

    Raises:
        VideoError: the source cannot be read; names it and the reason.
        ValueError, TypeError: an argument is wrong; names it, what came and what was wanted.

    Warns:
        VideoWarning: the file is truncated or damaged; says how much could be read.
    """
    frames = open_source(source, fps=fps, start=start, end=end, max_frames=max_frames)
    return load(frames, progress)


def open_source(
    source: Source,
    *,
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
) -> FrameSource:
    """Find the frames that `read_video` would read, without reading them.

    Of a video file the packets are read, which takes a small part of the time of decoding, and 60
    bytes of memory for each. Where they do not tell when its frames are shown, as in a truncated
    file, it is decoded once without keeping a frame.

    Args, Raises, Warns: see `read_video`. What of a file turns out to be damaged only when it is
        decoded is raised, or warned of, while frames are read; see `FrameSource.read`.
    """
    _check_number("fps", fps, "a finite number > 0", lambda value: 0 < value < math.inf)
    _check_number("start", start, "a finite number >= 0", lambda value: 0 <= value < math.inf)
    _check_number("end", end, f"more than start={start or 0}", lambda value: value > (start or 0))
    if max_frames is not None:
        check_count("max_frames", max_frames)
    if isinstance(source, Video):
        return FrameSource.of(source)

    def choose(times: Times, duration: float, fps: float | None) -> Indices:
        chosen = pick(times, duration, fps=fps, start=start, end=end, max_frames=max_frames)
        if not len(chosen):
            raise ValueError(f"start: got {start}, wanted less than the {duration:g} s of {name}")
        return chosen

    if isinstance(source, str | os.PathLike):
        name = str(source)
        path = Path(source)
        stills = stills_at(path)
        if stills is None:
            return open_file(path, lambda times, duration: choose(times, duration, fps))
    else:
        stills = stills_in(source)
        name = stills.name
    return stills.source(fps or 1.0, lambda times, duration: choose(times, duration, None))


def pick(
    times: Times,
    duration: float,
    *,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
) -> Indices:
    """Indices of the frames on screen at `start + k / fps` for k = 0, 1, ... before `end`.

    Frame i is on screen from `times[i]` to `times[i + 1]`, the last one until `duration`; the
    result holds i if a moment `start + k / fps` falls in there. None for `fps`: all frames on
    screen between `start` and `end`. Empty if the window begins after the last frame.

    >>> pick(np.array([0.0, 0.4, 2.5, 2.6]), 3.2, fps=1).tolist()  # at 0, 1, 2 and 3 s
    [0, 1, 3]
    """
    start, end = start or 0.0, math.inf if end is None else end
    edges = np.append(times, duration)
    gaps = np.diff(edges, prepend=-1.0)
    late = np.minimum(SLACK, gaps / 2)
    if fps is None:
        end = max(end, start + 2 * SLACK)
        seen = (edges[1:] - late[1:] > start) & (edges[:-1] + late[:-1] <= end)
    else:
        appears = np.clip(edges - late, start, end)
        # How many of the moments have passed by then; rounded, so that 0.6 * 10 is 6.
        moments = np.ceil(np.round((appears - start) * fps, 6))
        seen = np.diff(moments) > 0
    chosen = np.flatnonzero(seen & (gaps[1:] > 0))  # of frames at one time, the last one is seen
    if max_frames is not None and len(chosen) > max_frames:
        last = len(chosen) - 1
        even = [last / 2] if max_frames == 1 else np.linspace(0, last, max_frames)
        chosen = chosen[np.round(even).astype(np.int64)]
    return chosen


def _check_number(name: str, value: object, wanted: str, good: Callable[[float], bool]) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), wanted {wanted} or None")
    if not good(float(value)):
        raise ValueError(f"{name}: got {value}, wanted {wanted} or None")
