"""Video files: the frames wanted of a file, found by its packets and decoded when asked for.

Where a file's packets say what depends on what, only what is needed is decoded. Wherever that does
not hold what it promised, and for all other files, all is decoded from the beginning. If even that
gives other frames than the packets promised, those that come are what there is.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

from bvllm_adapters.video.frames import (
    Choose,
    Frames,
    FrameSource,
    Indices,
    SourceChanged,
    VideoError,
    VideoWarning,
    check_positions,
)
from bvllm_adapters.video.groups import by_groups
from bvllm_adapters.video.packets import (
    THREADS,
    PacketIndex,
    decode,
    index_by_decoding,
    open_video,
    packets,
    read_index,
)
from bvllm_adapters.video.upright import Upright


def open_file(path: Path, choose: Choose) -> FrameSource:
    """The frames of a video file that `choose` picks.

    Raises:
        VideoError: for a file that is no video, or holds no frames.

    Warns:
        VideoWarning: the file is truncated or damaged; also while frames are read.
    """
    index = read_index(path)
    of = _source_by_decoding if index.pts is None else _source
    return of(path, index, choose)


def _source_by_decoding(path: Path, index: PacketIndex, choose: Choose) -> FrameSource:
    """Only decoding tells what is there, so do it twice: for the times, and for the frames."""
    index, lost = index_by_decoding(path, index)
    if index.truncated or lost:
        of = f" of {index.declared:.1f}" if index.declared > index.duration else ""
        _warn(
            f"{path}: {'truncated' if index.truncated else 'damaged'}: could read "
            f"{index.duration:.1f}{of} s, {len(index.seconds)} frames"
        )
    return _source(path, index, choose)


def _source(path: Path, index: PacketIndex, choose: Choose) -> FrameSource:
    chosen = choose(index.seconds, index.duration)

    @functools.cache  # to decode, and to warn, once
    def changed() -> FrameSource:
        return _source_by_decoding(path, index, choose)

    def read(positions: Indices) -> Iterator[Frames]:
        return frames(chosen[check_positions(positions, len(chosen))])

    def frames(wanted: Indices) -> Iterator[Frames]:
        given = 0
        for picture in _decoded(path, index, wanted):
            yield picture
            given += 1
        if given < len(wanted):
            if index.pts is None:
                raise VideoError(f"{path}: decoding it did not give the frames expected")
            raise SourceChanged(changed())

    return FrameSource(
        seconds=index.seconds[chosen],
        source=str(path),
        is_image=False,
        frame_count=len(index.seconds),
        duration=index.duration,
        read=read,
    )


def _decoded(path: Path, index: PacketIndex, wanted: Indices) -> Iterator[Frames]:
    """The frames wanted, upright, in the fastest way that gives them; fewer if none does."""
    given = 0
    if index.groups is not None and len(wanted):
        for picture in by_groups(path, index, index.groups, wanted):
            yield picture
            given += 1
    if given < len(wanted):
        yield from _in_order(path, index, wanted[given:])


def _in_order(path: Path, index: PacketIndex, wanted: Indices) -> Iterator[Frames]:
    """By decoding all from the beginning to the last one wanted."""
    upright = Upright(index.size, index.turn)
    left = iter([*wanted.tolist(), -1])
    next_wanted = next(left)
    # Where groups did not hold what they promised, or nothing did, the file is damaged: what a
    # decoder makes of the gaps may depend on how its threads meet.
    damaged = index.groups is not None or index.pts is None
    with open_video(path, 1 if damaged else THREADS) as (container, stream):
        all_packets = packets(container, stream)
        for i, frame in enumerate(f for one in all_packets for f in decode(stream, one) or ()):
            if index.pts is not None and (i >= len(index.pts) or index.pts[i] != frame.pts):
                return
            if i == next_wanted:
                yield upright(frame)
                if (next_wanted := next(left)) < 0:
                    return


def _warn(words: str) -> None:
    """As of the line that called this library, however deep in it we are."""
    package, frame, level = __name__.partition(".")[0], inspect.currentframe(), 1
    while frame and frame.f_globals.get("__name__", "").startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(words, VideoWarning, stacklevel=level)
