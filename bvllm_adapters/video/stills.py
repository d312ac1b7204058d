"""Images, folders, arrays and lists: pictures that were frames already when they came to us."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bvllm_adapters.video.frames import (
    Choose,
    Frames,
    FrameSource,
    Indices,
    VideoError,
    check_positions,
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
ANIMATIONS = ("GIF", "PNG", "WEBP")


@dataclass(frozen=True)
class Stills:
    """Pictures that were frames already when they came to us; files among them are read late."""

    name: str
    names: Sequence[str]  # of each
    read: Callable[[int], Frames]
    is_image: bool = False

    def source(self, fps: float, choose: Choose) -> FrameSource:
        """The pictures that `choose` picks, taken as `fps` a second."""
        count, step = len(self.names), 1.0 / fps
        times = np.arange(count, dtype=np.float64) * step
        chosen = choose(times, count * step)

        def read(positions: Indices) -> Iterator[Frames]:
            return self._of_one_size(chosen[check_positions(positions, len(chosen))])

        return FrameSource(times[chosen], self.name, self.is_image, count, count * step, read)

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


def stills_in(source: object) -> Stills:
    """Array, image or list of images."""
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
        return Stills("image", ["image"], lambda i: _rgb(source, "image"), is_image=True)
    if isinstance(source, list | tuple):
        images = [*source]  # as they are now
        for i, image in enumerate(images):
            if not isinstance(image, Image.Image):
                raise TypeError(f"source[{i}]: got {type(image).__name__}, wanted a PIL image")
        if not images:
            raise VideoError("source: got an empty list, wanted at least one image")
        names = [f"source[{i}]" for i in range(len(images))]
        return Stills(f"list of {len(images)} images", names, lambda i: _rgb(images[i], names[i]))
    raise TypeError(
        f"source: got {type(source).__name__}, wanted a path, a uint8 array, a PIL image or "
        "a list of PIL images"
    )


def stills_at(path: Path) -> Stills | None:
    """Image file or folder of images; None for what should be a video."""
    with _readable(path):
        if path.is_dir():
            files = images_in(path)
            return Stills(str(path), [str(one) for one in files], lambda i: _image(files[i]))
        if not path.exists():
            raise VideoError(f"{path}: no such file")
        if not path.is_file():
            raise VideoError(f"{path}: not a file")
        if not path.stat().st_size:
            raise VideoError(f"{path}: the file is empty")
        try:
            with Image.open(path) as image:
                # Pictures side by side in a JPEG (MPO) or TIFF file are no animation.
                animated = image.format in ANIMATIONS and getattr(image, "is_animated", False)
                if animated or image.format == "MPEG":
                    return None
        except UnidentifiedImageError:
            return None
    return Stills(str(path), [str(path)], lambda i: _image(path), is_image=True)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, frame2 before frame10."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    files = [file for file in files if not file.name.startswith(".")]  # macOS writes ._frame1.jpg
    if not files:
        raise VideoError(f"{folder}: no images in this folder ({' '.join(IMAGE_SUFFIXES)})")

    def natural(file: Path) -> list[str | int]:
        parts = re.split(r"(\d+)", file.name.lower())  # texts and numbers take turns
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    return sorted(sorted(files), key=natural)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever the system or PIL has against a file becomes a VideoError."""
    try:
        yield
    except VideoError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: cannot be read ({error})") from error


def _image(path: Path) -> Frames:
    with _readable(path), Image.open(path) as image:
        return _rgb(image, str(path))


def _rgb(image: Image.Image, name: str) -> Frames:
    """(H, W, 3) picture as a viewer would show it; transparency is dropped."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise VideoError(f"{name}: pixels of mode {image.mode} have no known range, wanted RGB")
    if image.mode.startswith("I;16"):  # convert() would clip these to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # convert() straight to RGB may warn
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
