"""Images, folders, arrays and lists: pictures that were frames already when they came to us."""

from __future__ import annotations

import contextlib
import math
import os
import re
import reprlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from bvllm_adapters.video.frames import (
    Choose,
    Frames,
    FrameSource,
    Indices,
    Times,
    VideoError,
    check_positions,
)
from bvllm_adapters.video.kinds import LIFTED, is_video, open_still
from bvllm_adapters.video.media import Media, readable

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif",
    ".heic", ".heif",
)  # fmt: skip
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # which does not convert to RGB itself

ORIENTATION = 0x0112  # in Exif

UPRIGHT: dict[int, Callable[[Frames], Frames]] = {
    2: lambda lying: lying[:, ::-1],
    3: lambda lying: lying[::-1, ::-1],
    4: lambda lying: lying[::-1],
    5: lambda lying: lying.swapaxes(0, 1),
    6: lambda lying: lying.swapaxes(0, 1)[:, ::-1],
    7: lambda lying: lying.swapaxes(0, 1)[::-1, ::-1],
    8: lambda lying: lying.swapaxes(0, 1)[::-1],
}
"""By what Exif says of how a picture lies."""


@dataclass(frozen=True)
class Stills:
    """Pictures that were frames already when they came to us; files among them are read late.

    Args:
        names: of each. read: gives the picture of an index, (H, W, 3) uint8 RGB, or VideoError.
        seconds: (T,) when each is shown, if whoever gave them has said so.
    """

    name: str
    names: Sequence[str]
    read: Callable[[int], Frames]
    is_image: bool = False
    seconds: Times | None = None

    def source(self, fps: float, choose: Choose) -> FrameSource:
        """The pictures that `choose` picks, taken as `fps` a second unless it is said when they
        are shown; then the last is shown as long as others mostly are."""
        count, step = len(self.names), 1.0 / fps
        times, duration = np.arange(count, dtype=np.float64) * step, count * step
        if self.seconds is not None:
            times = self.seconds
            duration = float(times[-1] + (np.median(np.diff(times)) if count > 1 else step))
        chosen = choose(times, duration)

        def read(positions: Indices) -> Iterator[Frames]:
            return self._of_one_size(chosen[check_positions(positions, len(chosen))])

        return FrameSource(times[chosen], self.name, self.is_image, count, duration, read)

    def _of_one_size(self, chosen: Indices) -> Iterator[Frames]:
        first: Frames | None = None
        for i in chosen.tolist():
            frame = self.read(i)
            first = frame if first is None else first
            if frame.shape != first.shape:
                (height, width), (first_height, first_width) = frame.shape[:2], first.shape[:2]
                raise VideoError(
                    f"{self.names[i]}: {width}x{height}, "
                    f"but {self.names[chosen[0]]} is {first_width}x{first_height}"
                )
            yield frame


# Given


def stills_in(source: object) -> Stills:
    """Array, image, or list: of images, of arrays, or of either with the second it is shown at.

    Raises:
        TypeError, VideoError: naming what came and what was wanted.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (3, 4) or source.shape[-1] != 3:
            raise VideoError(
                f"array: got {source.dtype} {source.shape}, wanted uint8 (T, H, W, 3) or (H, W, 3)"
            )
        if not source.size:
            raise VideoError(f"array: got shape {source.shape}, wanted at least one frame")
        array = source if source.ndim == 4 else source[None]
        return Stills("array", ["array"] * len(array), lambda i: array[i], source.ndim == 3)
    if isinstance(source, Image.Image):
        name = _with_file(source, "image")
        return Stills("image", [name], lambda _: _given(source, name), is_image=True)
    if isinstance(source, list | tuple):
        return _stills_in_list([*source])  # as they are now
    raise TypeError(
        f"source: got {type(source).__name__}, wanted a path, a uint8 array, a PIL image or "
        "a list of PIL images"
    )


def _stills_in_list(items: list[Any]) -> Stills:
    if not items:
        raise VideoError("source: got an empty list, wanted at least one image")
    seconds: list[float] | None = None
    if isinstance(items[0], list | tuple):
        seconds = []
        for i, item in enumerate(items):
            seconds.append(_second(f"source[{i}]", item, seconds))
        items = [frame for frame, _ in items]
    for i, frame in enumerate(items):
        _check_frame(f"source[{i}]", frame)
    names = [_with_file(frame, f"source[{i}]") for i, frame in enumerate(items)]
    return Stills(
        f"list of {len(items)} images",
        names,
        lambda i: _given(items[i], names[i]),
        seconds=None if seconds is None else np.array(seconds),
    )


def _second(name: str, item: Any, before: list[float]) -> float:
    """Of (frame, second), after the seconds of the frames before."""
    if not isinstance(item, list | tuple) or len(item) != 2:
        came = f"{len(item)} values" if isinstance(item, list | tuple) else type(item).__name__
        raise TypeError(f"{name}: got {came}, wanted (frame, second)")
    came = item[1]
    if isinstance(came, bool) or not isinstance(came, Real):
        told_as = f"{reprlib.repr(came)} ({type(came).__name__})"
        raise TypeError(f"{name}: got second {told_as}, wanted a number")
    try:
        second = float(came)
    except OverflowError:
        second = math.inf
    if not 0 <= second < math.inf:
        raise VideoError(f"{name}: got second {second}, wanted a finite number >= 0")
    if before and second <= before[-1]:
        raise VideoError(f"{name}: got second {second}, wanted more than {before[-1]} before it")
    return second


def _check_frame(name: str, frame: Any) -> None:
    if isinstance(frame, np.ndarray):
        wrong = frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3
        if wrong or not frame.size:
            raise VideoError(
                f"{name}: got {frame.dtype} {frame.shape}, wanted a uint8 (H, W, 3) array"
            )
    elif not isinstance(frame, Image.Image):
        raise TypeError(
            f"{name}: got {type(frame).__name__}, wanted a PIL image or a uint8 (H, W, 3) array"
        )


def _with_file(frame: object, name: str) -> str:
    """The name of what was given, and of the file that a PIL image was opened from."""
    file = getattr(frame, "filename", None)
    if not isinstance(file, str | bytes | os.PathLike) or not file:
        return name
    return f"{name} ({os.fsdecode(file)})"


def _given(frame: Frames | Image.Image, name: str) -> Frames:
    return frame if isinstance(frame, np.ndarray) else rgb(frame, name, _loading)


# Files


def stills_at(media: Media) -> Stills | None:
    """An image file; None for what is to be read as a video, or an animation.

    Raises:
        VideoError: it is an image that nothing here can read.
    """
    with told(media.name), media.open() as file:
        if is_video(file, media.name):
            return None
    return Stills(
        media.name, [media.name], lambda _: _picture(media.open, media.name), is_image=True
    )


def stills_of(folder: Path, name: str) -> Stills:
    """The images of a folder, which the caller called `name`."""
    with told(name):
        files = [file.absolute() for file in images_in(folder, name)]  # wherever we are later
    names = [os.path.join(name, file.name) for file in files]

    def read(i: int) -> Frames:
        return _picture(lambda: files[i].open("rb"), names[i])

    return Stills(name, names, read)


def images_in(folder: Path, name: str | None = None) -> list[Path]:
    """The image files of a folder, frame2 before frame10, and 0.25 before 0.5.

    Raises:
        VideoError: there are none; says `name`, or the folder's own.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    files = [file for file in files if not file.name.startswith(".")]  # macOS writes ._frame1.jpg
    if not files:
        suffixes = " ".join(IMAGE_SUFFIXES)
        raise VideoError(f"{name or folder}: no images in this folder ({suffixes})")
    return in_natural_order(sorted(files))


def in_natural_order(files: list[Path]) -> list[Path]:
    """By the numbers in their names. Numbers with one point are decimals, as in frame_10.25.png,
    unless two of them, after the same text, would be the same: then what is behind the point
    counts, as from shot1.1.png to shot1.10.png. Dates and versions have more points, and count."""
    # Texts and numbers take turns.
    split = {file: re.split(r"(\d+(?:\.\d+)*)", file.name.lower()) for file in files}
    behind: dict[tuple[str, ...], set[str]] = defaultdict(set)  # points, by what is before them
    for parts in split.values():
        for i, number in enumerate(parts):
            before, *digits = number.split(".")
            if i % 2 and len(digits) == 1:
                behind[(*parts[:i], before)].add(digits[0])
    counting = {
        before
        for before, digits in behind.items()
        if len({one.rstrip("0") for one in digits}) < len(digits)
    }

    def natural(file: Path) -> list[str | tuple[Fraction | int, ...]]:
        parts = split[file]
        return [numbers(parts[:i], part) if i % 2 else part for i, part in enumerate(parts)]

    def numbers(before: list[str], text: str) -> tuple[Fraction | int, ...]:
        whole, *digits = text.split(".")
        if len(digits) == 1 and (*before, whole) not in counting:
            return int(whole), Fraction(int(digits[0]), 10 ** len(digits[0]))
        return int(whole), *map(int, digits)

    return sorted(files, key=natural)


def _picture(opened: Callable[[], BinaryIO], name: str) -> Frames:
    with told(name), opened() as file, open_still(file, name) as image:
        return rgb(image, name)


# Pillow's images


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Whatever anybody has against a source becomes a VideoError that names it. What Pillow raises
    for damaged files is of all kinds."""
    with readable(name):
        try:
            yield
        except UnidentifiedImageError as error:
            raise VideoError(f"{name}: cannot be read (no image that Pillow knows)") from error
        except Image.DecompressionBombError as error:
            raise VideoError(f"{name}: cannot be read ({error} {LIFTED})") from error


def rgb(image: Image.Image, name: str, lock: AbstractContextManager[Any] | None = None) -> Frames:
    """(H, W, 3) picture as a viewer would show it; transparency is dropped.

    Args:
        lock: held while an image is read that other threads may have as well.

    Raises:
        VideoError: it cannot be read, or its pixels have no known range.
    """
    with told(name):
        with lock or contextlib.nullcontext():
            upright = UPRIGHT.get(_lying(image))
        if 0 in image.size:
            raise VideoError(f"{name}: got {image.width}x{image.height}, wanted a pixel at least")
        sixteen_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
        if image.mode in ("I", "F") and not sixteen_bits:
            raise VideoError(f"{name}: pixels of mode {image.mode} have no known range, wanted RGB")
        if sixteen_bits:  # convert() would clip these to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in PREMULTIPLIED:
            image = image.convert(PREMULTIPLIED[image.mode])
        if "transparency" in image.info:  # convert() straight to RGB may warn
            image = image.convert("RGBA")
        picture: Frames = np.asarray(image.convert("RGB"))
        return upright(picture) if upright else picture


def _lying(image: Image.Image) -> int:
    """What Exif says of how a picture lies, which is read with the picture if it is not yet."""
    before = {key: value for key, value in vars(image).items() if key in ("tile", "fp")}
    try:
        image.load()
    except Exception:
        vars(image).update(before)  # else Pillow would take it for read the next time
        raise
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # of a damaged Exif; the picture is none the worse for it
        image._exif = None  # else Pillow would give the half that it has, the next time
        return 1


_loading = threading.Lock()
"""An image that was opened is read, by whoever asks first, from the one file that it holds."""
if hasattr(os, "register_at_fork"):  # so that no child begins in the middle of that
    os.register_at_fork(
        before=_loading.acquire,
        after_in_parent=_loading.release,
        after_in_child=_loading.release,
    )
