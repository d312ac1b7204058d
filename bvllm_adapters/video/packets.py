"""What a video file holds: its packets say when each frame is shown, without decoding.

PyAV is imported, and files opened, within a call: nothing is open when a process forks.
"""

from __future__ import annotations

import contextlib
import math
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bvllm_adapters.video.dependence import dependence
from bvllm_adapters.video.frames import Indices, Times, VideoError
from bvllm_adapters.video.upright import turn_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

THREADS = min(4, os.cpu_count() or 1)  # to decode with; more would crowd DataLoader workers
KEY, HIDDEN = 1, 2  # marks of a packet


@dataclass(frozen=True, eq=False)
class Groups:
    """Where decoding of T frames can begin: at G key frames. Times are in ticks, places are those
    of packets in the file.

    Args:
        frame_pts, frame_packet: (T,) when each frame is shown, increasing, and its place.
        key_pts, key_dts, key_packet: (G,) when each key frame is shown, increasing, when it is
            decoded, and its place.
    """

    frame_pts: Indices
    frame_packet: Indices
    key_pts: Indices
    key_dts: Indices
    key_packet: Indices


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """What a file holds: when its T frames are shown, and how they are to be decoded.

    Args:
        seconds: (T,) from the first frame.
        pts: (T,) the same times as the decoder will give them, in ticks; None if that is not known.
        groups: None: decoding can begin only where the file does.
        duration: s. declared: as the header says, in s; 0 if it does not.
        truncated: whether the file ends too early.
        size: (width, height) of the first frame as stored.
        turn: how to turn the picture, see `turn_of`.
    """

    seconds: Times
    pts: Indices | None
    groups: Groups | None
    duration: float
    declared: float
    truncated: bool
    size: tuple[int, int]
    turn: Indices | None


@contextlib.contextmanager
def open_video(path: Path, threads: int = THREADS) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its first video stream, to be decoded by as many threads."""
    import av
    from av.stream import Disposition

    try:
        # An absolute path is never taken for a protocol, as "a:b.mp4" would be.
        container = av.open(str(path.absolute()), **_ignoring_bad_metadata(av.__version__))
    except (av.FFmpegError, OSError, ValueError) as error:
        with path.open("rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
        reason = "truncated: its index (moov) is missing" if is_mp4 else "not a video"
        raise VideoError(f"{path}: {reason} ({getattr(error, 'strerror', error)})") from error
    with container:
        if container.format.name == "tty":
            raise VideoError(f"{path}: not a video (text)")
        covers = Disposition.attached_pic  # the picture on an album's cover is no video
        streams = [one for one in container.streams.video if not one.disposition & covers]
        if not streams:
            raise VideoError(f"{path}: no video stream")
        stream = streams[0]
        stream.thread_type, stream.thread_count = "AUTO", threads
        try:
            yield container, stream
        finally:
            # Ends what the decoder's threads are at. PyAV frees a decoder without letting go of
            # Python's lock, for which a thread that logs waits, as it does where somebody, such as
            # torchvision, has set PyAV's log level: then none would ever go on.
            stream.codec_context.flush_buffers()


def _ignoring_bad_metadata(version: str) -> dict[str, Any]:
    """For av.open: PyAV 19 does so of itself, and knows the argument no more."""
    return {"metadata_errors": "ignore"} if int(version.split(".")[0]) < 19 else {}


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Packets until the file ends, or cannot be read further."""
    import av

    with contextlib.suppress(av.FFmpegError):
        yield from container.demux(stream)


def decode(stream: VideoStream, packet: Packet[VideoStream] | None) -> list[VideoFrame] | None:
    """The frames that come out as a packet goes in, or the last ones for None; None if it cannot
    be decoded."""
    import av

    try:
        return stream.decode(packet)
    except av.FFmpegError:
        return None


def read_index(path: Path) -> PacketIndex:
    """What the packets say; only the first frame is decoded, for what only a frame knows.

    Raises:
        VideoError: for a file that is no video, or holds no frames.
    """
    # An hour has 100,000 packets, of which objects would take ten times the memory.
    times, lengths, key_dts, marks = array("q"), array("q"), array("q"), bytearray()
    partial, untimed = False, False  # the last packet is cut short; some packet has no time
    first: VideoFrame | None = None
    with open_video(path) as (container, stream):
        links = dependence(container, stream)
        for packet in packets(container, stream):
            if first is None:
                first = next(iter(decode(stream, packet) or ()), None)
            if packet.size:  # else it only marks the end
                is_key = links is not None and packet.is_keyframe and links.begins(packet)
                marks.append(KEY * is_key | HIDDEN * packet.is_discard)
                times.append(packet.pts or 0)
                lengths.append(packet.duration or 0)
                if is_key:
                    key_dts.append(times[-1] if packet.dts is None else packet.dts)
                partial, untimed = packet.is_corrupt, untimed or packet.pts is None
        declared = (container.duration or 0) / 1e6
        tick, step = float(stream.time_base or 1), _step(stream)
        torn = _is_torn(path, container.format.name)
    if first is None:
        cause = "truncated: " if torn else ""
        raise VideoError(f"{path}: {cause}no frames in {len(times)} packets of video")

    in_file, mark = np.frombuffer(times, np.int64), np.frombuffer(marks, np.uint8)
    order = np.argsort(in_file, kind="stable")
    order = order[mark[order] & HIDDEN == 0]  # an edit list has frames decoded that are not shown
    pts = in_file[order]
    seconds = (pts - pts[0]) * tick
    truncated = partial or torn
    known = not truncated and not untimed and bool((np.diff(pts) > 0).all())
    return PacketIndex(
        seconds=seconds,
        pts=pts if known else None,
        groups=_groups(pts, order, in_file, np.flatnonzero(mark & KEY), key_dts) if known else None,
        duration=float(seconds[-1] + (lengths[order[-1]] * tick or step)),
        declared=declared,
        truncated=truncated,
        size=(first.width, first.height),
        turn=turn_of(first),
    )


def _groups(
    pts: Indices, packet: Indices, in_file: Indices, keys: Indices, key_dts: array[int]
) -> Groups | None:
    """Groups that hold all frames; None if there are no such."""
    # What is in the file before a key frame has to be shown before it, as decoders give it.
    latest = np.maximum.accumulate(in_file)
    orderly = (keys == 0) | (latest[keys - 1] < in_file[keys])
    keys = keys[orderly]
    if not len(keys) or in_file[keys[0]] > pts[0]:
        return None
    return Groups(pts, packet, in_file[keys], np.array(key_dts)[orderly], keys)


def index_by_decoding(path: Path, index: PacketIndex) -> tuple[PacketIndex, int]:
    """`index` with the times of the frames that do come out, and the number of lost packets."""
    times = array("d")
    lost, length = 0, 0.0
    with open_video(path, 1) as (container, stream):  # as it will be read
        step = _step(stream)
        for packet in packets(container, stream):
            frames = decode(stream, packet)
            lost += frames is None
            for frame in frames or ():
                times.append(math.nan if frame.pts is None else frame.time)
                length = float((frame.duration or 0) * (frame.time_base or 0))
    seconds = _steady(np.frombuffer(times), step)
    duration = float(seconds[-1]) + (length or step)
    return replace(index, seconds=seconds, pts=None, groups=None, duration=duration), lost


def _is_torn(path: Path, format_name: str) -> bool:
    """Whether a file ends before its contents do, by what its format says of their length."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if format_name.startswith("mov,"):
            start = 0
            while start + 16 <= size:  # one box follows another, each headed by its length
                file.seek(start)
                length = int.from_bytes(file.read(4), "big")
                if length == 1:
                    length = int.from_bytes(file.read(12)[4:], "big")
                if length < 8:
                    return False  # 0: up to the end of the file
                start += length
            return start > size
        if format_name.startswith("matroska,"):
            before, _, head = file.read(4096).partition(b"\x18\x53\x80\x67")  # the one segment
            if not head:
                return False
            digits = 9 - head[0].bit_length()  # bytes, of 7 bits each, in which its length stands
            length = int.from_bytes(head[:digits], "big") - (1 << 7 * digits)
            unknown = length == (1 << 7 * digits) - 1
            return not unknown and len(before) + 4 + digits + length > size
        if format_name == "mpegts":
            return all(size % packet for packet in (188, 192, 204))
        file.seek(max(0, size - 64))
        return format_name == "gif" and not file.read().rstrip(b"\0").endswith(b";")


def _step(stream: VideoStream) -> float:
    """Seconds from frame to frame, for formats that do not time each."""
    return float(1 / (stream.average_rate or 25))


def _steady(times: Times, step: float) -> Times:
    """Times of frames in the order they are shown, from 0 and never decreasing.

    Where times are missing (NaN), frames are `step` apart. A jump far back is a clock that was
    set anew (joined recordings): it goes on. Lesser disorder is sorted out.
    """
    if np.isnan(times).any():
        return np.arange(len(times), dtype=np.float64) * step
    jumps = np.diff(times, prepend=times[0])
    times = np.sort(times + np.cumsum(np.where(jumps < -8 * step, step - jumps, 0.0)))
    return cast(Times, times - times[0])
