"""Small pictures of frames that were seen, for whoever wants to see why they were chosen, and what
part of a picture the tower was shown.

Axes: H and W of the picture, S the tower's image size, P patches.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from bvllm_adapters.features import VisualTokens
from bvllm_adapters.seeing.encoded_video import EncodedVideo
from bvllm_adapters.seeing.fingerprint import path_stamp
from bvllm_adapters.seeing.sight import Sight
from bvllm_adapters.video.frames import SourceChanged, VideoError
from bvllm_adapters.video.groups_of_frames import in_groups
from bvllm_adapters.video.pictures import small_jpeg
from bvllm_adapters.video.read import source_of
from bvllm_adapters.video.sampling import Sampling

Pictures = dict[int, bytes]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of the picture's width and height."""


def pictures_of(encoded: EncodedVideo, frames: Iterable[int]) -> Pictures:
    """Of these frames of a video, as far as they are there: those of a stream are kept only where
    a scout chooses. None of a file that has changed since."""
    wanted = sorted({*frames})
    with encoded.lock:
        if encoded.source is None:
            rows, kept = encoded.repeats.rows, encoded._pushed
            there = [i for i in wanted if i < len(rows) and rows[i] < len(kept)]
            return {i: small_jpeg(kept[rows[i]]) for i in there}
        with suppress(VideoError, SourceChanged):
            encoded.check_source()
            shown = encoded.source.read(np.asarray(wanted))
            return {i: small_jpeg(frame) for i, frame in zip(wanted, shown, strict=True)}
    return {}


def reader_of(
    encoded: EncodedVideo, reading: Sampling
) -> Callable[[Iterable[int]], Pictures] | None:
    """`pictures_of` for later, of a video in a file or folder; holds no more than where that is.

    Args:
        reading: which of its frames were read.
    """
    path, stamp = encoded.path, encoded._stamp
    if encoded.source is None or path is None:
        return None
    count, each = len(encoded), encoded.sight.frames_per_look

    def read(frames: Iterable[int]) -> Pictures:
        wanted = sorted({*frames})
        with suppress(VideoError, SourceChanged, OSError):
            source = in_groups(source_of(path, reading), each)
            if path_stamp(path) == stamp and len(source) == count:
                shown = source.read(np.asarray(wanted))
                return {i: small_jpeg(frame) for i, frame in zip(wanted, shown, strict=True)}
        return {}

    return read


def grid_of(patches: int, layout: Any = None) -> tuple[int, int] | None:
    """Rows and columns in which P patches lie: as the video's size has it where the host says that
    (`height`, `width`), else a square; None: neither fits."""
    height, width = getattr(layout, "height", None), getattr(layout, "width", None)
    if not (height and width):
        side = math.isqrt(patches)
        return (side, side) if side * side == patches else None
    pairs = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]

    def off(pair: tuple[int, int]) -> float:
        return abs(math.log(pair[1] / pair[0]) - math.log(width / height))

    best = min(pairs, key=off)
    return best if off(best) <= math.log(1.5) else None


def box_of(sight: Sight, size: Sequence[int], *, is_image: bool = False) -> Box | None:
    """The part of (H, W) pictures that the tower's pixels show, where a host makes (k, 3, S, S) of
    them: a processor may cut a square out, or put a margin around.

    Found by how it shows a picture that brightens from left to right, or from top to bottom.

    Returns:
        None: pixels are of some other kind; best taken for the whole picture.
    """
    if sight.layout is not None or sight.frames_per_look != 1:
        return None
    height, width = size
    probe = np.zeros((4, height, width, 3), np.uint8)
    probe[1] = 255
    probe[2] = np.linspace(0, 255, width).round()[:, None]
    probe[3] = np.linspace(0, 255, height).round()[:, None, None]
    shown: Any = [
        sight.host.pixels(sight.processor, frame[None], is_image=is_image) for frame in probe
    ]
    if not all(isinstance(each, Tensor) and each.dim() == 4 for each in shown):
        return None
    black, white, across, down = (each[0, 0].float().cpu().numpy() for each in shown)
    span = white - black
    if (span <= 0).all():
        return None
    inside = span > span.max() / 2  # a margin is the same in all of them
    columns, rows = inside.any(axis=0), inside.any(axis=1)
    found = []
    for ramp, along, line in (
        ((across - black)[rows][:, columns].mean(axis=0), columns, span[rows][:, columns].mean()),
        ((down - black)[rows][:, columns].mean(axis=1), rows, span[rows][:, columns].mean()),
    ):
        at = np.flatnonzero(along) + 0.5
        if len(at) < 2:
            return None
        slope, start = np.polyfit(at, ramp / line, 1)
        if slope <= 0:
            return None
        found.append((float(start), float(start + slope * len(along))))
    (left, right), (top, bottom) = found
    return tuple(round(edge, 3) for edge in (left, top, right, bottom))  # type: ignore[return-value]


def pictured(encoded: EncodedVideo, visual: VisualTokens, *, sampled: bool) -> dict[str, Any]:
    """What a trace shows beside numbers: pictures of chosen frames, and how patches lie on them.

    Args:
        sampled: whether a sampler made the tokens; else they are the patches themselves.
    """
    pictures = pictures_of(encoded, visual.selection.frame.tolist())
    patches = visual.looked if sampled else visual.members
    found: dict[str, Any] = {"pictures": pictures, "grid": None, "box": None}
    if patches is not None:
        found["grid"] = grid_of(patches.shape[-1], visual.layout)
    if pictures and found["grid"] is not None:
        width, height = Image.open(io.BytesIO(next(iter(pictures.values())))).size
        image = encoded.source is not None and encoded.source.is_image
        found["box"] = box_of(encoded.sight, (height, width), is_image=image)
    return found
