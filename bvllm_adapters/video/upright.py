"""From a decoded frame to the picture that a player would show."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from bvllm_adapters.video.frames import Frames, Indices, VideoError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

UNSPECIFIED = 2  # in the standards' numbers of matrices, primaries and transfer functions


def turn_of(frame: VideoFrame, coded: bytes = b"") -> Indices | None:
    """(2, 2) [[a, b], [c, d]] by which pixel (x, y) is shown at (a x + c y, b x + d y); None: as
    it is stored.

    Args:
        coded: what the frame was decoded from.

    Of the eight ways to lay a picture down it is the one that a file's matrix is nearest to: files
    have it rounded, scaled, or all of zeros.
    """
    matrix = _matrix(frame, coded)
    if matrix is None or not matrix.any():
        return None
    nearest = max(_WAYS, key=lambda way: float((way * matrix).sum()))
    return None if (nearest == np.eye(2)).all() else nearest


_WAYS = [
    np.array(way)
    for way in (
        ((1, 0), (0, 1)), ((-1, 0), (0, 1)), ((-1, 0), (0, -1)), ((1, 0), (0, -1)),
        ((0, 1), (1, 0)), ((0, 1), (-1, 0)), ((0, -1), (-1, 0)), ((0, -1), (1, 0)),
    )
]  # fmt: skip
"""In the order in which Exif numbers them, from 1."""


def lying(jpeg: bytes) -> int:
    """What its Exif says of how a picture lies, from 1 to 8; 1, upright, if it does not say."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            told = int(image.getexif().get(0x0112, 1))
    except Exception:  # of a damaged head
        return 1
    return told if 1 <= told <= len(_WAYS) else 1


def _matrix(frame: VideoFrame, coded: bytes) -> npt.NDArray[np.float64] | None:
    """(2, 2) of a frame's display matrix."""
    try:
        data = cast("bytes | None", frame.side_data.get("DISPLAYMATRIX"))
    except ValueError:
        # PyAV knows no name for something else that comes with the frame, such as its Exif. It
        # still tells the angle, but not whether the picture is mirrored.
        if coded.startswith(b"\xff\xd8"):
            return _WAYS[lying(coded) - 1].astype(np.float64)
        angle = np.deg2rad(frame.rotation)
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if data is None:
        return None
    return np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2].astype(np.float64)


def can_convert(frame: VideoFrame) -> bool:
    """Whether a frame becomes RGB with the colours that it names."""
    try:
        _converter()(frame, 16, 16)
    except (OSError, ValueError):
        return False
    return True


def _converter() -> Callable[[VideoFrame, int, int], VideoFrame]:
    import av
    from av.video.reformatter import VideoReformatter

    # frame.to_ndarray(format=...) makes one of these for each frame.
    convert = partial(VideoReformatter().reformat, format="rgb24")
    if int(av.__version__.partition(".")[0]) >= 17:
        # Else it would have a thread for each CPU: slower among several decoders, and waited
        # for without end where a process that was forked frees it.
        convert = partial(convert, threads=1)
    return cast("Callable[[VideoFrame, int, int], VideoFrame]", convert)


class Upright:
    """Turns decoded frames into (H, W, 3) uint8 RGB.

    Args:
        name: of the file. size: (width, height) as stored; frames of other sizes, as a stream may
            have, are scaled.
        turn: see `turn_of`. untagged: take no notice of the colours that frames name.

    Raises:
        VideoError: when called, for a frame that does not become RGB in any way.
    """

    def __init__(
        self, name: str, size: tuple[int, int], turn: Indices | None, untagged: bool
    ) -> None:
        self.name, self.size, self.turn, self.untagged = name, size, turn, untagged
        self._convert = _converter()

    def __call__(self, frame: VideoFrame) -> Frames:
        picture = cast(Frames, self._rgb(frame).to_ndarray())
        if self.turn is None:
            return picture
        (a, b), (c, d) = self.turn.tolist()
        if a == d == 0:
            picture, a, d = picture.swapaxes(0, 1), c, b
        return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]

    def _rgb(self, frame: VideoFrame) -> VideoFrame:
        if not self.untagged:
            try:
                return self._convert(frame, *self.size)
            except (OSError, ValueError):
                pass  # a single frame that names other colours
        frame.colorspace = frame.color_primaries = frame.color_trc = UNSPECIFIED
        try:
            return self._convert(frame, *self.size)
        except (OSError, ValueError) as error:
            raise VideoError(
                f"{self.name}: pictures of kind {frame.format.name} cannot be made RGB ({error})"
            ) from error
