"""Video files: the frames wanted of a file, found by its packets and decoded when asked for.

Where a file's packets say what depends on what, only what is needed is decoded; of other files all
is, from the beginning. Decoders report every error then. At the first, or where a frame does not
come as its packet promised, the file is damaged, and what is read of it, from the beginning and
whatever was asked for, is what a single decoder makes of all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from bvllm_adapters.video.container import decode, open_video, packets
from bvllm_adapters.video.damaged import index_by_decoding
from bvllm_adapters.video.frames import (
    Choose,
    Frames,
    FrameSource,
    Indices,
    VideoError,
    reading,
    warn,
)
from bvllm_adapters.video.groups import by_groups
from bvllm_adapters.video.media import Media
from bvllm_adapters.video.packets import PacketIndex, read_index, shift
from bvllm_adapters.video.upright import Upright

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


def open_file(media: Media, choose: Choose) -> FrameSource:
    """The frames of a video file that `choose` picks.

    Raises:
        VideoError: for a file that is no video, holds no frames, or asks for more than `limits`
            allow.

    Warns:
        VideoWarning: the file is truncated or damaged, or names colours that do not exist; also
            while frames are read.
    """
    index = read_index(media)
    if index.untagged:
        warn(
            f"{media.name}: names colours that its pictures cannot be converted by; read as if it "
            "named none"
        )
    of = _source_by_decoding if index.pts is None else _source
    return of(media, index, choose)


def _source_by_decoding(media: Media, index: PacketIndex, choose: Choose) -> FrameSource:
    """Only decoding tells what is there, so do it twice: for the times, and for the frames."""
    index, damage = index_by_decoding(media, index)
    if index.truncated or damage:
        of = f" of {index.declared:.1f}" if index.declared > index.duration else ""
        warn(
            f"{media.name}: {'truncated' if index.truncated else 'damaged'}: could read "
            f"{index.duration:.1f}{of} s, {len(index.seconds)} frames{damage}"
        )
    return _source(media, index, choose)


def _source(media: Media, index: PacketIndex, choose: Choose) -> FrameSource:
    chosen = choose(index.seconds, index.duration)

    def changed() -> FrameSource:
        if index.pts is None:
            raise VideoError(f"{media.name}: decoding it did not give the frames expected")
        return _source_by_decoding(media, index, choose)

    return FrameSource(
        seconds=index.seconds[chosen],
        source=media.name,
        is_image=False,
        frame_count=len(index.seconds),
        duration=index.duration,
        read=reading(chosen, partial(_decoded, media, index), changed),
        track=index.track,
        picture_bytes=3 * index.size[0] * index.size[1],
    )


def _decoded(media: Media, index: PacketIndex, wanted: Indices) -> Iterator[Frames]:
    """The frames wanted, upright, in the fastest way that gives them; fewer if none does."""
    given = 0
    if index.groups is not None and len(wanted):
        for picture in by_groups(media, index, index.groups, wanted):
            yield picture
            given += 1
    if given < len(wanted):
        yield from _in_order(media, index, wanted[given:])


def _in_order(media: Media, index: PacketIndex, wanted: Indices) -> Iterator[Frames]:
    """By decoding all from the beginning to the last one wanted: strictly, and up to the first
    frame that is not what its packet promised; or, where none promised anything, leniently."""
    upright = Upright(media.name, index.size, index.turn, index.untagged)
    places = (wanted if index.place is None else index.place[wanted]).tolist()
    needed, held, turn = set(places), dict[int, Frames](), 0
    promised = index.pts
    strict = promised is not None
    # This generator holds the file itself: to end another one by an exception would leave a circle
    # of references to the decoder, which a process that is forked then could not free.
    with open_video(media, strict=strict) as (container, stream):
        for i, frame in enumerate(_frames(media, container, stream, index)):
            if frame is None or not _is_as_promised(frame, i, promised):
                return
            if i in needed:
                held[i] = upright(frame)  # of a damaged file some wait for their turn
            while turn < len(places) and places[turn] in held:
                yield held.pop(places[turn])
                turn += 1
            if turn == len(places):
                return


def _frames(
    media: Media, container: InputContainer, stream: VideoStream, index: PacketIndex
) -> Iterator[VideoFrame | None]:
    """All that can be decoded; with an index that promises something, None at an error."""
    for i, packet in enumerate(packets(media, container, stream)):
        shift(packet, index, i)
        frames = decode(stream, packet)
        if frames is None and index.pts is not None:
            yield None
        yield from frames or ()
    yield from decode(stream, None) or ()


def _is_as_promised(frame: VideoFrame, i: int, pts: Indices | None) -> bool:
    return pts is None or (i < len(pts) and pts[i] == frame.pts and not frame.is_corrupt)
