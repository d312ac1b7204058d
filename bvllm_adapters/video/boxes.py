"""The boxes of an mp4 file, which follow one another, each headed by its length and kind.

FFmpeg visits each of them anew whenever the file is opened, which takes minutes where a file
consists of nothing but empty ones.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import BinaryIO

from bvllm_adapters.video.limits import VideoError
from bvllm_adapters.video.media import Media, readable

FIRST = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")
"""What such a file begins with."""
HOLDS_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"udta")
"""Once a file, or once a track."""
EMPTY, MOST_EMPTY = 16, 10_000
"""Bytes below which a box holds nothing to speak of, and how many such a file may have."""


class Boxes:
    """What is to be known of an mp4 file's boxes.

    Args:
        is_mp4: whether the file has any. has_index: whether its moov is there.
        end: where the last one ends, or would end if the file went on.

    Raises:
        VideoError: it consists of empty ones.
    """

    def __init__(self, media: Media) -> None:
        with readable(media.name), media.open() as file:
            self.is_mp4 = file.read(8)[4:] in FIRST
            self.has_index, self.end = False, 0
            empty = 0
            for kind, start, _, end in boxes_in(file, HOLDS_BOXES) if self.is_mp4 else ():
                self.has_index = self.has_index or kind == b"moov"
                self.end = max(self.end, end)
                empty += end - start < EMPTY
                if empty > MOST_EMPTY:
                    raise VideoError(
                        f"{media.name}: damaged: more than {MOST_EMPTY} of its boxes hold nothing"
                    )


def boxes_in(
    file: BinaryIO, entered: Collection[bytes] = ()
) -> Iterator[tuple[bytes, int, int, int]]:
    """(kind, start, begin, end) of each box of a file: where its head starts, and what it holds
    begins and ends, which may be behind the file's end. Of those entered, what is within too."""
    start, size = 0, file.seek(0, os.SEEK_END)
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind, begin = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:
            length, begin = int.from_bytes(head[8:], "big"), start + 16
        end = start + length if length else size
        if end < begin:
            return
        yield kind, start, begin, end
        start = begin if kind in entered else end
