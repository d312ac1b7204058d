"""Video files: when each frame is shown, and decoding those that are wanted.

PyAV first walks over a file's packets, which says when each frame is shown, without decoding.
Then decord decodes where its frames are known to be right, and PyAV everywhere else.
Both are imported, and their readers made, within a call: nothing is open when a process forks.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from bvllm_adapters.frames import (
    Choose,
    Frames,
    Indices,
    Progress,
    Times,
    Video,
    VideoError,
    VideoWarning,
    stack,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

THREADS = min(4, os.cpu_count() or 1)  # to decode with; more would crowd DataLoader workers


class _Unlike(VideoError):
    """A decoder gave other frames than expected."""


@dataclass(frozen=True, eq=False)
class _Index:
    """What a file holds: when its frames are shown, and how they are to be decoded.

    `seconds` count from the first frame. `pts` are the same times as the decoder will give them,
    in ticks; None if that is not known.
    """

    seconds: Times
    pts: list[int] | None
    duration: float
    declared: float  # s, as the header says; 0 if it does not
    truncated: bool
    matrix: Indices | None  # (2, 2) how to turn the picture; None: not at all
    suits_decord: bool


def read_file(path: Path, choose: Choose, progress: Progress | None) -> Video:
    def video(decode: Callable[[Path, _Index, Indices], Iterator[Frames]]) -> Video:
        chosen = choose(index.seconds, index.duration)
        frames = stack(decode(path, index, chosen), len(chosen), progress)
        count = len(index.seconds)
        return Video(frames, index.seconds[chosen], str(path), False, count, index.duration)

    index = _index(path)
    if index.pts is not None:
        for decode in (_by_decord, _by_pyav) if index.suits_decord else (_by_pyav,):
            with contextlib.suppress(_Unlike):
                return video(decode)
    # Only decoding tells what is there, so do it twice: once for the times, once for the chosen.
    index, lost = _index_by_decoding(path, index)
    if index.truncated or lost:
        of = f" of {index.declared:.1f}" if index.declared > index.duration else ""
        warnings.warn(
            f"{path}: {'truncated' if index.truncated else 'damaged'}: could read "
            f"{index.duration:.1f}{of} s, {len(index.seconds)} frames",
            VideoWarning,
            stacklevel=3,
        )
    return video(_by_pyav)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its first video stream."""
    import av
    from av.stream import Disposition

    try:
        # An absolute path is never taken for a protocol, as "a:b.mp4" would be.
        container = av.open(str(path.absolute()), metadata_errors="ignore")
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
        stream.thread_type, stream.thread_count = "AUTO", THREADS
        yield container, stream


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Packets until the file ends, or cannot be read further."""
    import av

    with contextlib.suppress(av.FFmpegError):
        yield from container.demux(stream)


def _decode(stream: VideoStream, packet: Packet[VideoStream]) -> list[VideoFrame] | None:
    """The frames that come out as a packet goes in; None if it cannot be decoded."""
    import av

    try:
        return stream.decode(packet)
    except av.FFmpegError:
        return None


def _step(stream: VideoStream) -> float:
    """Seconds from frame to frame, for formats that do not time each."""
    return float(1 / (stream.average_rate or 25))


def _index(path: Path) -> _Index:
    """What the packets say; only the first frame is decoded, for what only a frame knows."""
    rows: list[tuple[int, int, bool, bool]] = []  # in decoding order
    partial = False  # the last packet
    first: VideoFrame | None = None
    with _open(path) as (container, stream):
        for packet in _packets(container, stream):
            if first is None:
                first = next(iter(_decode(stream, packet) or ()), None)
            if packet.size:  # else it only marks the end
                pts, length = packet.pts or 0, packet.duration or 0
                rows.append((pts, length, packet.is_keyframe, packet.is_discard))
                partial = packet.is_corrupt
        declared = (container.duration or 0) / 1e6
        tick, step = float(stream.time_base or 1), _step(stream)
        name, codec = container.format.name, stream.codec_context.name
        only = len(container.streams.video) == 1
    torn = _is_torn(path, name)
    if first is None:
        cause = "truncated: " if torn else ""
        raise VideoError(f"{path}: {cause}no frames in {len(rows)} packets of video")

    decoded, lengths, keys, hidden = np.array(rows).T
    keys, hidden = keys.astype(bool), hidden.astype(bool)
    order = np.argsort(decoded, kind="stable")
    order = order[~hidden[order]]  # an edit list has frames decoded that are not shown
    pts = decoded[order]
    seconds = (pts - pts[0]) * tick
    truncated = partial or torn
    # Missing times came as 0, so that they are not distinct either.
    known = not truncated and bool((np.diff(pts) > 0).all())
    # decord seeks to the key frame before a frame. That is wrong where frames that follow the key
    # frame in the file are shown before it (an open group of pictures), as HEVC often has it.
    later = np.minimum.accumulate(decoded[::-1])[::-1]
    closed = bool(keys[0]) and bool((later == decoded)[keys].all())
    matrix = _matrix(first)
    is_mov = name.startswith("mov,")
    suits_decord = (
        (is_mov or name.startswith("matroska,"))
        and codec in ("h264", "hevc", "vp9")
        and first.format.components[0].bits == 8
        and only
        and closed
        and not hidden.any()
        and (matrix is None or (is_mov and np.linalg.det(matrix) > 0))  # it cannot mirror
    )
    return _Index(
        seconds=seconds,
        pts=pts.tolist() if known else None,
        duration=float(seconds[-1] + (lengths[order[-1]] * tick or step)),
        declared=declared,
        truncated=truncated,
        matrix=matrix,
        suits_decord=suits_decord,
    )


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


def _index_by_decoding(path: Path, index: _Index) -> tuple[_Index, int]:
    """`index` with the times of the frames that do come out, and the number of lost packets."""
    times: list[float] = []
    lost, length = 0, 0.0
    with _open(path) as (container, stream):
        step = _step(stream)
        for packet in _packets(container, stream):
            frames = _decode(stream, packet)
            lost += frames is None
            for frame in frames or ():
                times.append(math.nan if frame.pts is None else frame.time)
                length = float((frame.duration or 0) * (frame.time_base or 0))
    seconds = _steady(np.array(times), step)
    duration = float(seconds[-1]) + (length or step)
    return replace(index, seconds=seconds, pts=None, duration=duration), lost


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


def _by_pyav(path: Path, index: _Index, chosen: Indices) -> Iterator[Frames]:
    from av.video.reformatter import VideoReformatter

    convert = VideoReformatter().reformat  # frame.to_ndarray(format=...) makes one for each frame
    wanted = iter(chosen.tolist())
    next_wanted = next(wanted)
    size: tuple[int, int] | None = None
    with _open(path) as (container, stream):
        packets = _packets(container, stream)
        for i, frame in enumerate(f for packet in packets for f in _decode(stream, packet) or ()):
            if index.pts is not None and index.pts[i : i + 1] != [frame.pts]:
                break
            if i == next_wanted:
                # The size may change within a stream; the first one holds.
                size = size or (frame.width, frame.height)
                picture = cast(Frames, convert(frame, *size, format="rgb24").to_ndarray())
                yield _upright(picture, index.matrix)
                if (next_wanted := next(wanted, -1)) < 0:
                    return
    raise _Unlike(f"{path}: decoding it did not give the frames expected")


def _by_decord(path: Path, index: _Index, chosen: Indices) -> Iterator[Frames]:
    try:
        import decord

        # fault_tol: an error, rather than the nearest frame in place of one that is damaged.
        reader = decord.VideoReader(str(path.absolute()), num_threads=THREADS, fault_tol=1e-6)
        if len(reader) != len(index.seconds):
            raise _Unlike(f"{path}: decord counts {len(reader)} frames, not {len(index.seconds)}")
        for i in chosen.tolist():
            frame = reader[i]
            yield frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)
    except Exception as error:  # its own errors derive from nothing narrower
        raise _Unlike(f"{path}: decord cannot read it ({error})") from error


def _matrix(frame: VideoFrame) -> Indices | None:
    """(2, 2) [[a, b], [c, d]] by which pixel (x, y) is shown at (a x + c y, b x + d y)."""
    data = cast("bytes | None", frame.side_data.get("DISPLAYMATRIX"))
    if data is None:
        return None
    matrix = np.sign(np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2])
    return None if (matrix == np.eye(2)).all() else matrix


def _upright(picture: Frames, matrix: Indices | None) -> Frames:
    if matrix is None:
        return picture
    (a, b), (c, d) = matrix.tolist()
    if a == d == 0:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
