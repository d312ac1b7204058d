"""What the packets of a coded video say of each other: where decoding can begin, and which of them
can be left out without a bit of any other frame changing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    AnyPacket = Packet[VideoStream]


Units = Callable[["AnyPacket"], list[int]]
"""The first 16 bits of each unit of a packet."""
START_CODE = re.compile(rb"\x00\x00\x01(..)", re.DOTALL)


@dataclass(frozen=True)
class Dependence:
    """How to tell what one stream's packets depend on.

    Args:
        begins: whether decoding can begin at a packet that is marked as a key frame. What follows
            in the file needs nothing from before it, but for frames that are shown before it.
        is_spare: whether no other packet needs this one.
    """

    begins: Callable[[AnyPacket], bool]
    is_spare: Callable[[AnyPacket], bool]


def dependence(container: InputContainer, stream: VideoStream) -> Dependence | None:
    """How to tell in this stream; None where it is not known how."""
    # Other containers may seek wrongly, or mark key frames that are none.
    name = container.format.name
    if not name.startswith(("mov,", "matroska,", "mpegts")):
        return None
    codec, head = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    in_lengths = head[:1] == b"\x01"  # rather than between start codes
    if codec == "h264" and in_lengths and len(head) > 4:
        return _h264(partial(_by_lengths, width=1 + (head[4] & 3)))
    if codec == "hevc" and in_lengths and len(head) > 21:
        return _hevc(partial(_by_lengths, width=1 + (head[21] & 3)), layers=head[21] >> 3 & 7)
    if codec == "h264" and name == "mpegts":
        return _h264(_by_start_codes)
    if codec in ("vp9", "av1"):
        # A key frame resets all that later frames may refer to.
        return Dependence(begins=lambda packet: True, is_spare=lambda packet: False)
    return None


def _h264(units: Units) -> Dependence:
    """Units begin with: 1 bit of 0, 2 bits nal_ref_idc, 5 bits nal_unit_type."""

    def pictures(packet: AnyPacket) -> list[int]:
        return [unit for unit in units(packet) if 1 <= unit >> 8 & 31 <= 5]

    def begins(packet: AnyPacket) -> bool:
        # IDR pictures. Files mark others too, after which some refer to what was before.
        return any(unit >> 8 & 31 == 5 for unit in pictures(packet)[:1])

    def is_spare(packet: AnyPacket) -> bool:
        # Of pictures and parameters, only what nothing refers to has 0.
        return bool(pictures(packet)) and not any(unit >> 13 for unit in units(packet))

    return Dependence(begins, is_spare)


def _hevc(units: Units, layers: int) -> Dependence:
    """Units begin with: 1 bit of 0, 6 bits nal_unit_type, 6 bits, 3 bits temporal layer, from 1."""

    def types(packet: AnyPacket) -> list[int]:
        return [unit >> 9 for unit in units(packet) if unit & 7]

    def begins(packet: AnyPacket) -> bool:
        pictures = [one for one in types(packet) if one < 32]
        return any(16 <= one < 24 for one in pictures[:1])  # IRAP

    def is_spare(packet: AnyPacket) -> bool:
        # Even types below 16: pictures not referred to in their own temporal layer. 35 and 38 to
        # 40: no pictures, and no parameters either.
        found = types(packet)
        return (
            layers == 1
            and any(one < 16 for one in found)
            and all((one < 16 and one % 2 == 0) or one in (35, 38, 39, 40) for one in found)
        )

    return Dependence(begins, is_spare)


def _by_lengths(packet: AnyPacket, width: int) -> list[int]:
    """The first 16 bits of each unit; before each stands its length, in `width` bytes. None of a
    packet that is not made so, as when it is damaged."""
    data, at, units = memoryview(packet), 0, []
    while at + width + 2 <= len(data):
        length = int.from_bytes(data[at : at + width], "big")
        at += width
        units.append(data[at] << 8 | data[at + 1])
        at += length
    return units if at == len(data) else []


def _by_start_codes(packet: AnyPacket) -> list[int]:
    """The same of units that stand between start codes."""
    return [unit[0] << 8 | unit[1] for unit in START_CODE.findall(bytes(packet))]
