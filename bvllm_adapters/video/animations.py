"""Animated WebP, which FFmpeg does not decode: its chunks say when each frame is shown, and Pillow
puts the frames together.

A file that ends too early, or is damaged, is read up to there.
"""

from __future__ import annotations

import bisect
import contextlib
import io
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from bvllm_adapters.video.frames import (
    Choose,
    Frames,
    FrameSource,
    Indices,
    Times,
    VideoError,
    reading,
    warn,
)
from bvllm_adapters.video.kinds import check_pixels, is_webp_animation, webp_chunks
from bvllm_adapters.video.limits import check_work
from bvllm_adapters.video.media import Media
from bvllm_adapters.video.stills import rgb, told

AT_ONCE, INSTEAD = 10, 100
"""Frames that are to be shown for 10 ms or less are shown for 100, as browsers do."""


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """What the chunks say.

    Args:
        size: (width, height). shown: (N,) how long each frame is shown, in ms. ends: (N,) where
            it ends, in bytes. whole: whether nothing is left out of the file.
    """

    size: tuple[int, int]
    shown: array[int]
    ends: array[int]
    whole: bool

    @property
    def seconds(self) -> Times:
        """(N + 1,) when each frame appears, and the last one goes."""
        return np.cumsum([0, *self.shown]) / 1000

    def up_to(self, count: int) -> FrameIndex:
        """The first frames only."""
        return FrameIndex(self.size, self.shown[:count], self.ends[:count], whole=False)


def is_animation(media: Media) -> bool:
    """Whether it is an animated WebP."""
    with told(media.name), media.open() as file:
        return is_webp_animation(file)


def animation(media: Media, choose: Choose) -> FrameSource:
    """The frames of an animated WebP that `choose` picks, composited.

    Raises:
        VideoError: no frame can be read, or its canvas is too large.

    Warns:
        VideoWarning: the file is truncated or damaged; also while frames are read.
    """
    with told(media.name):
        index = _index(media)
    if not len(index.shown):
        raise VideoError(f"{media.name}: truncated: no frame in it is whole")
    if not index.whole:
        warn(f"{media.name}: truncated: could read {_length(index)}")
    return _source(media, index, choose)


def _source(media: Media, index: FrameIndex, choose: Choose) -> FrameSource:
    seconds = index.seconds
    chosen = choose(seconds[:-1], float(seconds[-1]))

    def changed() -> FrameSource:
        good = index.up_to(_count_good(media, index))
        if not len(good.shown):
            raise VideoError(f"{media.name}: damaged: none of its frames can be decoded")
        if len(good.shown) == len(index.shown):
            raise VideoError(f"{media.name}: decoding it did not give the frames expected")
        warn(f"{media.name}: damaged: could read {_length(good)} of {_length(index)}")
        return _source(media, good, choose)

    return FrameSource(
        seconds=seconds[chosen],
        source=media.name,
        is_image=False,
        frame_count=len(index.shown),
        duration=float(seconds[-1]),
        read=reading(chosen, partial(_decoded, media, index), changed),
        picture_bytes=3 * index.size[0] * index.size[1],
    )


def _index(media: Media) -> FrameIndex:
    shown, ends = array("q"), array("q")
    width = height = 0
    with media.open() as file:
        file.seek(4)
        length = 8 + int.from_bytes(file.read(4), "little")
        for kind, within in webp_chunks(file):
            end = file.tell() + within
            if end > media.size:
                break
            if kind == b"VP8X":
                head = file.read(10)
                width, height = (1 + int.from_bytes(head[i : i + 3], "little") for i in (4, 7))
            elif kind == b"ANMF" and within >= 16:
                milliseconds = int.from_bytes(file.read(15)[12:], "little")
                shown.append(milliseconds if milliseconds > AT_ONCE else INSTEAD)
                ends.append(end + end % 2)
    check_pixels((width, height))
    check_work(media.name, len(shown), width, height, media.size)
    return FrameIndex((width, height), shown, ends, whole=length <= media.size)


def _decoded(media: Media, index: FrameIndex, wanted: Indices) -> Iterator[Frames]:
    """The frames wanted, up to the first that cannot be decoded."""
    if not len(wanted):
        return
    with told(media.name), media.open() as file:
        data = file.read(media.size if index.whole else index.ends[-1])
    if not index.whole:  # its head is to say so, or it would not be opened
        data = b"RIFF" + (len(data) - 8).to_bytes(4, "little") + data[8:]
    with contextlib.suppress(VideoError), told(media.name), Image.open(io.BytesIO(data)) as image:
        if getattr(image, "n_frames", 1) != len(index.shown):
            return  # one is left out, so that all after it would be shown at other times
        for i in wanted.tolist():
            image.seek(i)
            yield rgb(image, media.name)


def _count_good(media: Media, index: FrameIndex) -> int:
    """How many frames can be decoded, until one cannot."""

    def opens(count: int) -> bool:
        return any(True for _ in _decoded(media, index.up_to(count), np.zeros(1, np.int64)))

    # Some damage keeps all of a file from being opened, though not what is before it.
    counts = range(1, len(index.shown) + 1)
    count = bisect.bisect_left(counts, True, key=lambda count: not opens(count))
    if not count:
        return 0
    return sum(1 for _ in _decoded(media, index.up_to(count), np.arange(count)))


def _length(index: FrameIndex) -> str:
    return f"{index.seconds[-1]:.1f} s, {len(index.shown)} frames"
