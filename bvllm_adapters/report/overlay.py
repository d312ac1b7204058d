"""Pictures of where tokens looked, and of which patches became one, over the frame itself.

Axes: P patches of a frame, in rows and columns; R tokens made of it.
"""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.floating[Any]]
# Dark violet to light yellow, as dark as bright: it reads in print, and for the colour-blind.
_RAMP = np.array(
    [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)],
    np.float64,
)
QUALITY = 84


def heat(frame: Mapping[str, Any]) -> Array | None:
    """(P,) of a frame of a trace: how many times as much as evenly its tokens looked at each patch;
    None: nobody noted it."""
    looked = frame.get("looked")
    if not looked:
        return None
    shares = np.asarray(looked, np.float64).mean(axis=0)
    found: Array = shares * len(shares)
    return found


def token_heat(frame: Mapping[str, Any], token: int) -> Array | None:
    """`heat` of one token that was left: of what was merged into it."""
    members = frame.get("members") or range(len(frame.get("looked") or ()))
    of = [i for i, member in enumerate(members) if member == token]
    if not of or not frame.get("looked"):
        return None
    shares = np.asarray([frame["looked"][i] for i in of], np.float64).mean(axis=0)
    found: Array = shares * len(shares)
    return found


def strongest(frames: Sequence[Mapping[str, Any]]) -> float:
    """By what heat is scaled: the strongest of any of the frames, twice as much as evenly at
    least, so that hardly any difference does not look like one."""
    found = [values.max() for values in map(heat, frames) if values is not None]
    return max(2.0, *found) if found else 2.0


def heat_over(
    picture: bytes, values: Array, most: float, grid: Sequence[int], box: Sequence[float] | None
) -> bytes:
    """The picture under its heat map, as a JPEG file; `most` is brightest, evenly is darkest."""
    image = opened(picture)
    level = np.clip((values - 1) / (most - 1), 0, 1) ** 0.7
    small = Image.fromarray(level.reshape(grid[0], grid[1]).astype(np.float32))
    spread, seen = _spread(small, image.size, box, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(spread, np.float64), 0, 1)[..., None]
    place = level * (len(_RAMP) - 1)
    low = np.minimum(place.astype(int), len(_RAMP) - 2)[..., 0]
    colour = _RAMP[low] + (_RAMP[low + 1] - _RAMP[low]) * (place - low[..., None])
    pixels = np.asarray(image, np.float64)
    grey = pixels.mean(axis=2, keepdims=True) * 0.62
    mixed = grey * (1 - 0.78 * level) + colour * 0.78 * level
    mixed = np.where(seen[..., None], mixed, 255 - (255 - grey) * 0.25)
    return _jpeg(mixed)


def mosaic_over(
    picture: bytes, members: Sequence[int | None], grid: Sequence[int], box: Sequence[float] | None
) -> bytes:
    """What is left of the picture where patches became one token: their mean colour, with a line
    around each, as a JPEG file."""
    image = opened(picture)
    label = np.array([-1 if member is None else member for member in members], np.float32)
    small = Image.fromarray(label.reshape(grid[0], grid[1]))
    spread, seen = _spread(small, image.size, box, Image.Resampling.NEAREST)
    of = np.asarray(spread).round().astype(int)
    of[~seen] = -1
    pixels = np.asarray(image, np.float64)
    drawn = 255 - (255 - pixels) * 0.25
    for token in np.unique(of[of >= 0]):
        drawn[of == token] = pixels[of == token].mean(axis=0)
    edge = np.zeros(of.shape, bool)
    edge[:, 1:] |= of[:, 1:] != of[:, :-1]
    edge[1:] |= of[1:] != of[:-1]
    drawn[edge] = drawn[edge] * 0.35 + 255 * 0.65
    return _jpeg(drawn)


def strip(rows: Array) -> bytes:
    """(K, n) numbers from 0 to 1 -> a PNG file of as many pixels, from white to dark blue."""
    light, dark = np.array([255, 255, 255.0]), np.array([8, 48, 107.0])
    shades = light + (dark - light) * np.clip(rows, 0, 1)[..., None]
    file = io.BytesIO()
    Image.fromarray(shades.round().astype(np.uint8)).save(file, "PNG", optimize=True)
    return file.getvalue()


def picture_of(frame: Mapping[str, Any]) -> bytes:
    """The JPEG file of a frame of a trace."""
    return b64decode(frame["picture"])


def size_of(frame: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of its picture."""
    return Image.open(io.BytesIO(picture_of(frame))).size


def smaller(picture: bytes, side: int) -> bytes:
    """The same with a longest edge of so many pixels at most."""
    image = opened(picture)
    image.thumbnail((side, side))
    return _jpeg(np.asarray(image))


def opened(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture)).convert("RGB")


def _spread(
    small: Image.Image, size: tuple[int, int], box: Sequence[float] | None, how: Image.Resampling
) -> tuple[Image.Image, npt.NDArray[np.bool_]]:
    """Values of patches over a picture of this size, and which of its pixels they are of."""
    width, height = size
    left, top, right, bottom = (0.0, 0.0, 1.0, 1.0) if box is None else box
    x, y = round(left * width), round(top * height)
    wide, high = max(round(right * width) - x, 1), max(round(bottom * height) - y, 1)
    large = Image.new("F", size, 0.0)
    large.paste(small.resize((wide, high), how), (x, y))
    seen = np.zeros((height, width), bool)
    seen[max(y, 0) : max(y + high, 0), max(x, 0) : max(x + wide, 0)] = True
    return large, seen


def _jpeg(pixels: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
