"""From a decoded frame to the picture that a player would show."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from bvllm_adapters.video.frames import Frames, Indices

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


def turn_of(frame: VideoFrame) -> Indices | None:
    """(2, 2) [[a, b], [c, d]] by which pixel (x, y) is shown at (a x + c y, b x + d y); None: as
    it is stored."""
    data = cast("bytes | None", frame.side_data.get("DISPLAYMATRIX"))
    if data is None:
        return None
    matrix = np.sign(np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2])
    return None if (matrix == np.eye(2)).all() else matrix


class Upright:
    """Turns decoded frames into (H, W, 3) uint8 RGB.

    Args:
        size: (width, height) as stored; frames of other sizes, as a stream may have, are scaled.
        turn: see `turn_of`.
    """

    def __init__(self, size: tuple[int, int], turn: Indices | None) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.size, self.turn = size, turn
        # frame.to_ndarray(format=...) makes one of these for each frame.
        self._convert = partial(VideoReformatter().reformat, format="rgb24")
        if int(av.__version__.partition(".")[0]) >= 17:
            # Else it would have a thread for each CPU: slower among several decoders, and waited
            # for without end where a process that was forked frees it.
            self._convert = partial(self._convert, threads=1)

    def __call__(self, frame: VideoFrame) -> Frames:
        picture = cast(Frames, self._convert(frame, *self.size).to_ndarray())
        if self.turn is None:
            return picture
        (a, b), (c, d) = self.turn.tolist()
        if a == d == 0:
            picture, a, d = picture.swapaxes(0, 1), c, b
        return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
