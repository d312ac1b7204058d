"""What a video file holds: its packets say when each frame is shown, without decoding."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bvllm_adapters.video import limits
from bvllm_adapters.video.boxes import Boxes
from bvllm_adapters.video.clock import UNKNOWN, Stamps, Timing, timing
from bvllm_adapters.video.container import decode, open_video, packets, track_name
from bvllm_adapters.video.dependence import dependence
from bvllm_adapters.video.frames import Indices, Times, VideoError
from bvllm_adapters.video.media import Media
from bvllm_adapters.video.torn import is_torn
from bvllm_adapters.video.upright import can_convert, turn_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    AnyPacket = Packet[VideoStream]

SOUND_SLACK = 0.25
"""s by which sound ends later than the picture in most files, as it is coded in longer pieces."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Where decoding of T frames can begin: at G key frames. Times are in ticks, places are those
    of packets in the file.

    Args:
        frame_pts, frame_packet: (T,) when each frame is shown, increasing, and its place.
        key_pts, key_dts, key_packet: (G,) when each key frame is shown, increasing, when it is
            decoded, and its place.
        packet_pts: (P,) when the frame of each packet of the file is shown, in its order.
    """

    frame_pts: Indices
    frame_packet: Indices
    key_pts: Indices
    key_dts: Indices
    key_packet: Indices
    packet_pts: Indices


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """What a file holds: when its T frames are shown, and how they are to be decoded.

    Args:
        seconds: (T,) from the first frame.
        pts: (T,) by which the decoder's frames are known, in ticks, increasing; None if only
            their order is known.
        shifts: (P,) ticks to add to the stamps of each packet of the file; None: they are right.
        groups: None: decoding can begin only where the file does.
        duration: s. declared: as the header says, in s; 0 if it does not.
        truncated: whether the file ends too early.
        size: (width, height) of the first frame as stored.
        turn: how to turn the picture, see `turn_of`.
        untagged: whether pictures are to be taken as if no colour matrix were named.
        track: which of several was read; None: there is one.
        timed: whether packets tell when frames are shown.
        zero: s on the file's own clock at which the first frame is shown.
        place: (T,) of which frame that a decoder gives each is; None: the first is the first.
    """

    seconds: Times
    pts: Indices | None
    shifts: Indices | None
    groups: Groups | None
    duration: float
    declared: float
    truncated: bool
    size: tuple[int, int]
    turn: Indices | None
    untagged: bool
    track: str | None
    timed: bool
    zero: float
    place: Indices | None = None


def read_index(media: Media) -> PacketIndex:
    """What the packets say; only the first frame is decoded, for what only a frame knows.

    Raises:
        VideoError: for a file that is no video, or holds no frames.
    """
    boxes = Boxes(media)
    with open_video(media) as (container, stream):
        stamps, first, coded = _read(media, container, stream)
        declared = (container.duration or 0) / 1e6
        tick, step = float(stream.time_base or 1), step_of(stream)
        sound_end = _sound_end(container)
        name, track = container.format.name, track_name(container, stream)
        torn = is_torn(media, name, boxes)
    count = len(stamps.pts)
    if first is None:
        raise VideoError(
            f"{media.name}: {'truncated: ' if torn else ''}no frames in {count} packets of video"
        )
    limits.check_work(media.name, count, first.width, first.height, media.size)

    truncated = stamps.partial or torn
    times = timing(stamps, name, tick, step)
    certain = times.distinct and not truncated and not stamps.corrupt
    duration = times.duration
    sound_goes_on = sound_end - times.zero > duration + SOUND_SLACK
    if sound_goes_on and not truncated and times.shifts is None:
        duration = sound_end - times.zero
    return PacketIndex(
        seconds=times.seconds,
        pts=times.shown if certain else None,
        shifts=times.shifts,
        groups=_groups(stamps, times) if certain and times.shifts is None else None,
        duration=duration,
        declared=declared,
        truncated=truncated,
        size=(first.width, first.height),
        turn=turn_of(first, coded),
        untagged=not can_convert(first),
        track=track,
        timed=times.timed,
        zero=times.zero,
    )


def _read(
    media: Media, container: InputContainer, stream: VideoStream
) -> tuple[Stamps, VideoFrame | None, bytes]:
    """What all packets say, the first frame, and the packet that it came of, if it is its own."""
    # An hour has 100,000 packets, of which objects would take ten times the memory.
    pts, dts, lengths = array("q"), array("q"), array("q")
    key, begins, hidden = bytearray(), bytearray(), bytearray()
    corrupt = partial = False
    first: VideoFrame | None = None
    coded = b""
    links = dependence(container, stream)
    for packet in packets(media, container, stream):
        if first is None:
            first = next(iter(decode(stream, packet) or ()), None)
            coded = bytes(packet)
        key.append(packet.is_keyframe)
        begins.append(packet.is_keyframe and links is not None and links.begins(packet))
        hidden.append(packet.is_discard)
        pts.append(UNKNOWN if packet.pts is None else packet.pts)
        dts.append(UNKNOWN if packet.dts is None else packet.dts)
        lengths.append(packet.duration or 0)
        partial = packet.is_corrupt
        corrupt = corrupt or partial
    if first is None:
        first = next(iter(decode(stream, None) or ()), None)
    stamps = Stamps(
        pts=np.frombuffer(pts, np.int64),
        dts=np.frombuffer(dts, np.int64),
        lengths=np.frombuffer(lengths, np.int64),
        key=np.frombuffer(key, np.bool_),
        begins=np.frombuffer(begins, np.bool_),
        hidden=np.frombuffer(hidden, np.bool_),
        corrupt=corrupt,
        partial=partial,
    )
    return stamps, first, coded


def _groups(stamps: Stamps, times: Timing) -> Groups | None:
    """Groups that hold all frames; None if there are no such."""
    # What is in the file before a key frame has to be shown before it, as decoders give it.
    keys = np.flatnonzero(stamps.begins)
    latest = np.maximum.accumulate(stamps.pts)
    orderly = (keys == 0) | (latest[keys - 1] < stamps.pts[keys])
    keys = keys[orderly]
    if not len(keys) or stamps.pts[keys[0]] > times.shown[0]:
        return None
    key_pts = stamps.pts[keys]
    key_dts = np.where(stamps.dts[keys] == UNKNOWN, key_pts, stamps.dts[keys])
    return Groups(times.shown, times.order, key_pts, key_dts, keys, stamps.pts)


def shift(packet: AnyPacket, index: PacketIndex, i: int) -> None:
    """Set the stamps of the i-th packet of a file right, in place."""
    if index.shifts is not None and i < len(index.shifts):
        by = int(index.shifts[i])
        packet.pts = None if packet.pts is None else packet.pts + by
        packet.dts = None if packet.dts is None else packet.dts + by


def _sound_end(container: InputContainer) -> float:
    """When the longest sound ends, in s on the file's own clock; none that says ends at once."""
    ends = []
    for sound in container.streams.audio:
        if sound.duration is not None and sound.time_base is not None:
            ends.append(float(((sound.start_time or 0) + sound.duration) * sound.time_base))
        elif container.duration is not None:
            ends.append(((container.start_time or 0) + container.duration) / 1e6)
    return max(ends, default=-math.inf)


def step_of(stream: VideoStream) -> float:
    """Seconds from frame to frame, for formats that do not time each: by the pictures' own head,
    where it says, rather than by what a container without times is taken to be."""
    return float(1 / (stream.codec_context.framerate or stream.average_rate or 25))
