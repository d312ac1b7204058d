"""What the packets of a coded video say of each other: where decoding can begin, and which of them
can be left out without a bit of any other frame changing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    AnyPacket = Packet[VideoStream]


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
    if not container.format.name.startswith(("mov,", "matroska,")):
        return None
    codec, head = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    in_lengths = head[:1] == b"\x01"  # rather than between start codes
    if codec == "h264" and in_lengths and len(head) > 4:
        return _h264(1 + (head[4] & 3))
    if codec == "hevc" and in_lengths and len(head) > 21:
        return _hevc(1 + (head[21] & 3), layers=head[21] >> 3 & 7)
    if codec in ("vp9", "av1"):
        # A key frame resets all that later frames may refer to.
        return Dependence(begins=lambda packet: True, is_spare=lambda packet: False)
    return None


def _h264(width: int) -> Dependence:
    """Units begin with: 1 bit, 2 bits nal_ref_idc, 5 bits nal_unit_type."""

    def begins(packet: AnyPacket) -> bool:
        # IDR pictures. Files mark others too, after which some refer to what was before.
        types = (unit >> 8 & 31 for unit in _units(packet, width))
        return next((one for one in types if 1 <= one <= 5), 0) == 5

    def is_spare(packet: AnyPacket) -> bool:
        # Only pictures and parameters that nothing refers to have 0.
        return not any(unit >> 13 & 3 for unit in _units(packet, width))

    return Dependence(begins, is_spare)


def _hevc(width: int, layers: int) -> Dependence:
    """Units begin with: 1 bit, 6 bits nal_unit_type, 6 bits layer, 3 bits temporal layer."""

    def begins(packet: AnyPacket) -> bool:
        types = (unit >> 9 & 63 for unit in _units(packet, width))
        return 16 <= next((one for one in types if one < 32), 0) < 24  # IRAP pictures

    def is_spare(packet: AnyPacket) -> bool:
        # Even types below 16: not referred to in their own temporal layer. 35 and 38 to 40: no
        # pictures, and no parameters either.
        types = (unit >> 9 & 63 for unit in _units(packet, width))
        return layers == 1 and all(
            (one < 16 and one % 2 == 0) or one in (35, 38, 39, 40) for one in types
        )

    return Dependence(begins, is_spare)


def _units(packet: AnyPacket, width: int) -> Iterator[int]:
    """The first 16 bits of each unit; before each stands its length, in `width` bytes."""
    data, at = memoryview(packet), width
    while at + 2 <= len(data):
        yield data[at] << 8 | data[at + 1]
        at += width + int.from_bytes(data[at - width : at], "big")
