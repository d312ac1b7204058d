"""Reading: a video file, image, folder, array or list of images -> frames with their times.

The frames wanted are chosen by the times at which a source shows them, so a variable frame rate
needs no special care. They are read one by one, or all into one array.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image

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
from bvllm_adapters.video.sampling import Sampling
from bvllm_adapters.video.stills import stills_at, stills_in

__all__ = [
    "FrameSource",
    "SourceChanged",
    "Video",
    "VideoError",
    "VideoWarning",
    "open_source",
    "read_video",
]

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
    return load(source_of(source, Sampling(fps, start, end, max_frames)), progress)


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
    return source_of(source, Sampling(fps, start, end, max_frames))


def source_of(source: Source, sampling: Sampling) -> FrameSource:
    """As `open_source`, which see."""
    if isinstance(source, Video):
        return FrameSource.of(source)

    def choose(times: Times, duration: float, fps: float | None) -> Indices:
        chosen = replace(sampling, fps=fps).pick(times, duration)
        if not len(chosen):
            raise ValueError(
                f"start: got {sampling.start}, wanted less than the {duration:g} s of {name}"
            )
        return chosen

    fps = sampling.fps
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
