"""Reading: a video file, image, folder, array or list of images -> frames with their times.

The frames wanted are chosen by the times at which a source shows them, so a variable frame rate
needs no special care. They are read one by one, or all into one array.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
from PIL import Image

from bvllm_adapters.video.animations import animation, is_animation
from bvllm_adapters.video.file import open_file
from bvllm_adapters.video.frames import (
    Choose,
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
from bvllm_adapters.video.media import Bytes, media_of, path_of
from bvllm_adapters.video.readers import check_reader, open_by, open_decoder
from bvllm_adapters.video.sampling import Sampling
from bvllm_adapters.video.stills import stills_at, stills_in, stills_of

__all__ = [
    "FrameSource",
    "SourceChanged",
    "Video",
    "VideoError",
    "VideoWarning",
    "open_source",
    "read_video",
]

Source = (
    str
    | os.PathLike[str]
    | Bytes
    | npt.NDArray[Any]
    | Image.Image
    | Sequence[Any]
    | Video
    | FrameSource
    | Any  # files and decoders that are open
)


def read_video(
    source: Source,
    *,
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    reader: str = "pyav",
    progress: Progress | None = None,
) -> Video:
    """Read the frames on screen at `start`, `start + 1 / fps`, ... before `end`, each once.

    The first of them may have come on screen, so have its `seconds`, a little before `start`.

    Args:
        source: what is read, whatever its name says. A video or image: its path, a file:// URL,
            another URL where fsspec is installed, its bytes, or a binary file that is open and can
            seek (read from its beginning; its own position stays). Frames: a folder of image files
            (in natural order), a (T, H, W, 3) or (H, W, 3) uint8 array, a PIL image, a list of
            those, or of (frame, second). Folders, arrays and lists are taken as sampled at `fps`,
            or as their seconds say, already: all their frames are read. A decoder that is open: a
            `decord.VideoReader` or torchcodec `VideoDecoder`. A `Video` is taken whole, as it was
            read, and so is what `open_source` gave.
        fps: frames per second of video; None for every frame (and 1 for sampled sources).
        start: seconds from the first frame; None for the beginning.
        end: seconds from the first frame; None, or anything later than the end, for the end.
        max_frames: if more would be read, as many, evenly over all of those, first and last kept.
        reader: of video files: "decord" or "torchcodec" for the very frames that a project that
            reads by it has seen. They are refused where they are known to be wrong.
        progress: called with (frames read, frames to read) after each frame.

    Raises:
        VideoError: the source cannot be read, or its frames together are more than
            `bvllm_adapters.video.limits` allow; names it and the reason.
        ValueError, TypeError: an argument is wrong; names it, what came and what was wanted.

    Warns:
        VideoWarning: the file is truncated or damaged; says how much could be read.
    """
    return load(source_of(source, Sampling(fps, start, end, max_frames), reader), progress)


def open_source(
    source: Source,
    *,
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    reader: str = "pyav",
) -> FrameSource:
    """Find the frames that `read_video` would read, without reading them.

    Of a video file the packets are read, which takes a small part of the time of decoding, and 60
    bytes of memory for each. Where they do not tell when its frames are shown, as in a truncated
    file, it is decoded once without keeping a frame.

    Args, Raises, Warns: see `read_video`. What of a file turns out to be damaged only when it is
        decoded is raised, or warned of, while frames are read; see `FrameSource.read`.
    """
    return source_of(source, Sampling(fps, start, end, max_frames), reader)


def source_of(source: Source, sampling: Sampling, reader: str = "pyav") -> FrameSource:
    """As `open_source`, which see."""
    check_reader(reader)
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, Video):
        return FrameSource.of(source)
    opened = open_decoder(source, _chooser(sampling, type(source).__name__))
    if opened is not None:
        return opened
    media = media_of(source)
    stills = None if media is None else stills_at(media)
    if media is not None and stills is None:
        choose = _chooser(sampling, media.name)
        if reader != "pyav":
            return open_by(reader, media, choose)
        return (animation if is_animation(media) else open_file)(media, choose)
    if stills is None:
        folder = path_of(source)
        stills = stills_in(source) if folder is None else stills_of(folder, str(source))
    return stills.source(sampling.fps or 1.0, _chooser(replace(sampling, fps=None), stills.name))


def _chooser(sampling: Sampling, name: str) -> Choose:
    """Which frames of the source of this name are wanted; ValueError if there are none."""

    def choose(times: Times, duration: float) -> Indices:
        chosen = sampling.pick(times, duration)
        if not len(chosen):
            raise ValueError(
                f"start: got {sampling.start}, wanted less than the {duration:g} s of {name}"
            )
        return chosen

    return choose
