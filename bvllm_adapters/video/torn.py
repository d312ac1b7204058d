"""Whether a file ends before its contents do, by what its format says of their length."""

from __future__ import annotations

from bvllm_adapters.video.boxes import Boxes
from bvllm_adapters.video.media import Media, readable


def is_torn(media: Media, format_name: str, boxes: Boxes) -> bool:
    if format_name.startswith("mov,"):
        return boxes.end > media.size
    with readable(media.name), media.open() as file:
        if format_name.startswith("matroska,"):
            return _segment_end(file.read(4096)) > media.size
        if format_name == "mpegts":
            return all(media.size % packet for packet in (188, 192, 204))
        file.seek(max(0, media.size - 64))
        return format_name == "gif" and not file.read(64).rstrip(b"\0").endswith(b";")


def _segment_end(head: bytes) -> int:
    """Where the one segment of a Matroska file ends; 0 if it does not say."""
    before, _, after = head.partition(b"\x18\x53\x80\x67")
    if not after:
        return 0
    digits = 9 - after[0].bit_length()  # bytes, of 7 bits each, in which its length stands
    length = int.from_bytes(after[:digits], "big") - (1 << 7 * digits)
    unknown = length == (1 << 7 * digits) - 1
    return 0 if unknown else len(before) + 4 + digits + length
