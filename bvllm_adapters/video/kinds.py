"""What a file is, told by what is in it: its name decides nothing.

Pillow takes JPEGs that follow each other for the first of them, and FFmpeg a tile of a HEIC picture
for all of it, so here is looked for what neither would tell. Files come open, and are read from
their beginning.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from PIL import Image, UnidentifiedImageError

from bvllm_adapters.video.boxes import boxes_in
from bvllm_adapters.video.frames import VideoError

LIFTED = "PIL.Image.MAX_IMAGE_PIXELS = None lifts the limit"
ANIMATIONS = ("GIF", "PNG")  # as Pillow calls those that FFmpeg reads as well
FORMATS = "AVIF BMP DIB GIF ICO JPEG JPEG2000 MPO PNG PPM TIFF WEBP"
"""Of Pillow's, those of pictures: others are known by next to nothing, as TGA, or run a program, as
EPS."""
READERS = {"AVIF": ("Pillow 11.3", "pillow>=11.3"), "HEIC": ("pillow-heif", "pillow-heif")}

STILL_BRANDS = {b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"miaf"}
DERIVED = {b"grid", b"iovl", b"iden"}  # pictures that are made of others
META_BYTES = 2**22
BOXES = 1000

LEAST_READS, BYTES_PER_READ = 20_000, {"": 1024, "GIF": 64}
"""Of images: pieces of a PNG have 8 KiB and more, those of a GIF 255 bytes, read in two."""
JPEG_BYTES, JPEG_SEGMENTS = 2**26, 10_000  # of one picture; who writes more writes no video
PADDING_BYTES = 2**16
JPEG_BEGIN = re.compile(rb"[\0\xff]*\xff\xd8(?=\xff)")
JPEG_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")  # but for what stands within coded pixels
JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def is_video(file: BinaryIO, name: str) -> bool:
    """Whether a file is no still image: a video, an animation, or nothing that is known.

    Raises:
        VideoError: a still image that nothing here can read.
    """
    still = boxed_still(file)
    if still is not None:
        reads = _reader(still)
        if reads is None and (still.tiled or still.turned):
            raise _unread(still, name)  # FFmpeg would give one tile, or the picture as it lies
        return reads is None
    file.seek(0)
    if file.read(8)[4:] == b"ftyp" or is_webp_animation(file) or is_motion_jpeg(file):
        return True
    file.seek(0)
    try:
        with _pillow(file) as image:
            # Pictures side by side in a JPEG (MPO) or TIFF file are no animation.
            return image.format in ANIMATIONS and getattr(image, "is_animated", False)
    except UnidentifiedImageError:
        return True


def open_still(file: BinaryIO, name: str) -> Image.Image:
    """The picture in a file, or the first of several, by whatever reads it.

    Raises:
        VideoError: nothing here does; whatever else those have against it.
    """
    still = boxed_still(file)
    reads = _pillow if still is None else _reader(still)
    if reads is None:
        assert still is not None
        raise _unread(still, name)
    file.seek(0)
    return reads(file)


def _pillow(file: BinaryIO) -> Image.Image:
    Image.init()
    known = [one for one in FORMATS.split() if one in Image.OPEN]
    return Image.open(cast(BinaryIO, _InPieces(file)), formats=known)


class _InPieces:
    """A file to Pillow, which reads it piece by piece: an image of millions of empty pieces would
    take minutes. Raises ValueError when they have become too many for its size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        is_gif = file.read(4) == b"GIF8"
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._left = LEAST_READS + size // (BYTES_PER_READ["GIF"] if is_gif else BYTES_PER_READ[""])

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("damaged: it consists of pieces that hold next to nothing")
        return self._file.read(size)


def check_pixels(size: tuple[int, int]) -> None:
    """As Pillow does, for pictures that it does not open itself: DecompressionBombError."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > 2 * limit:
        raise Image.DecompressionBombError(
            f"Image size ({size[0] * size[1]} pixels) exceeds limit of {2 * limit} pixels."
        )


@dataclass(frozen=True)
class BoxedStill:
    """A still picture in boxes, as HEIC and AVIF files are.

    Args:
        format: "AVIF" or "HEIC". tiled: made of several coded pictures. turned: shown otherwise
            than it is coded: turned, mirrored or cut.
    """

    format: str
    tiled: bool
    turned: bool


def boxed_still(file: BinaryIO) -> BoxedStill | None:
    """None for other files, and for those with a track, which are videos."""
    brands: set[bytes] = set()
    meta = b""
    for kind, _, begin, end in itertools.islice(boxes_in(file), BOXES):
        length = end - begin
        file.seek(begin)
        if kind == b"ftyp" and not brands:
            heads = file.read(min(length, META_BYTES))
            brands = {heads[i : i + 4] for i in range(0, len(heads), 4) if i != 4}
        elif kind == b"ftyp":
            break  # a motion photo: a video behind the picture
        elif kind == b"moov":
            return None
        elif kind == b"meta" and length <= META_BYTES:
            meta = file.read(length)
        if not brands & STILL_BRANDS:
            return None
    if not brands:
        return None
    coded, properties = _primary(meta)
    turned = any(
        name in (b"imir", b"clap") or (name == b"irot" and value[:1] > b"\0")
        for name, value in properties
    )
    return BoxedStill("AVIF" if b"avif" in brands else "HEIC", coded in DERIVED, turned)


def _reader(still: BoxedStill) -> Callable[[BinaryIO], Image.Image] | None:
    """Pillow, or pillow-heif; None if this one cannot, or is not here."""
    try:
        if still.format == "AVIF":
            return _pillow if importlib.import_module("PIL.AvifImagePlugin").SUPPORTED else None
        heif = importlib.import_module("pillow_heif")
    except ImportError:
        return None

    def read(file: BinaryIO) -> Image.Image:
        opened = heif.open_heif(file)
        check_pixels(opened.size)
        image: Image.Image = opened.to_pillow()  # upright, and its Exif says no more how it lay
        return image

    return read


def _unread(still: BoxedStill, name: str) -> VideoError:
    reader, package = READERS[still.format]
    return VideoError(
        f"{name}: {'tiled ' * still.tiled}{still.format} still, wanted {reader} to read it with "
        f"(pip install '{package}')"
    )


def _primary(meta: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """How the picture that is shown is coded, and (name, value) of each of its properties."""
    within = _contents(meta[4:])
    item, types, properties = 0, {}, []
    for kind, value in within:
        version, body = value[:1], io.BytesIO(value[4:])
        if kind == b"pitm":
            item = _number(body, 4 if version > b"\0" else 2)
        if kind == b"iinf":
            body.seek(4 if version > b"\0" else 2, io.SEEK_CUR)
            for _, entry in _contents(body.read()):
                width = 4 if entry[:1] > b"\2" else 2
                types[int.from_bytes(entry[4 : 4 + width], "big")] = entry[6 + width : 10 + width]
        if kind == b"iprp":
            properties = _contents(value)
    known = [one for kind, value in properties if kind == b"ipco" for one in _contents(value)]
    places = [
        place for kind, value in properties if kind == b"ipma" for place in _places(value, item)
    ]
    return types.get(item, b""), [known[i - 1] for i in places if 0 < i <= len(known)]


def _places(value: bytes, item: int) -> Iterator[int]:
    """Which properties, counted from 1, an item has, as an ipma box says."""
    id_width, width = (4 if value[:1] > b"\0" else 2), (2 if value[3:4] > b"\0" else 1)
    body = io.BytesIO(value[8:])
    while len(head := body.read(id_width)) == id_width:
        for _ in range(_number(body, 1)):
            place = _number(body, width) & (0x7FFF if width == 2 else 0x7F)
            if int.from_bytes(head, "big") == item:
                yield place


def _contents(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(kind, data[begin:end]) for kind, _, begin, end in boxes_in(io.BytesIO(data))]


def _number(body: BinaryIO, width: int) -> int:
    return int.from_bytes(body.read(width), "big")


def is_motion_jpeg(file: BinaryIO) -> bool:
    """Whether it is JPEGs of one size, of which the first two are whole. Pictures that say that
    others belong to them, as the second eye or the brightness of the first, are one image, and so
    is what has anything else behind it."""
    file.seek(0)
    size = _jpeg_size(file)
    if size is None or size != _jpeg_size(file):
        return False
    behind = file.read(PADDING_BYTES)
    return not behind.strip(b"\0\xff") or JPEG_BEGIN.match(behind) is not None


def _jpeg_size(file: BinaryIO) -> bytes | None:
    """Height and width of the whole JPEG that follows, which is passed; None for anything else."""
    start = file.tell()
    begin = JPEG_BEGIN.match(file.read(PADDING_BYTES))
    if not begin:
        return None
    file.seek(start + begin.end())
    size = None
    segments = itertools.count()
    while (marker := _jpeg_marker(file, start + JPEG_BYTES)) != 0xD9:
        length = int.from_bytes(file.read(2), "big")
        if marker in (None, 0xD8) or length < 2 or next(segments) > JPEG_SEGMENTS:
            return None
        segment = file.read(length - 2)
        if marker in JPEG_SIZES:
            size = segment[1:5]
        if marker == 0xE2 and segment.startswith(b"MPF\0"):
            return None
    return size


def _jpeg_marker(file: BinaryIO, limit: int) -> int | None:
    """The next marker, which is passed, before the place `limit`; None if there is none."""
    while (start := file.tell()) < limit and len(data := file.read(2**16)) > 1:
        found = JPEG_MARKER.search(data)
        if found:
            file.seek(start + found.end())
            return data[found.start() + 1]
        file.seek(start + len(data) - 1)  # a marker may stand across the edge
    return None


def webp_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(kind, bytes within) of each chunk of a WebP file; the file stands at what is within."""
    file.seek(0)
    head = file.read(12)
    if head[:4] + head[8:] != b"RIFFWEBP":
        return
    end = 8 + int.from_bytes(head[4:8], "little")
    while file.tell() < end and len(head := file.read(8)) == 8:
        length = int.from_bytes(head[4:], "little")
        begin = file.tell()
        yield head[:4], length
        file.seek(begin + length + length % 2)


def is_webp_animation(file: BinaryIO) -> bool:
    """Of two frames or more, whole or not."""
    chunks = itertools.islice(webp_chunks(file), BOXES)
    frames = (kind for kind, _ in chunks if kind == b"ANMF")
    return len([*itertools.islice(frames, 2)]) == 2
