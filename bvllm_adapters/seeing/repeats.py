"""Frames so like the one before that one look serves both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from bvllm_adapters.video.frames import Frames

SIDE = 32  # of the thumbnails that are compared


class Repeats:
    """Tells which frames of a video are new, and which repeat the last new one.

    A frame is compared with the last new frame, not with its neighbour, so that slow change adds
    up until it counts.

    Args:
        threshold: the mean difference of two 32 x 32 thumbnails, in levels of 255, up to which a
            frame is a repetition; None: every frame is new.
    """

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.rows: list[int] = []
        """For each frame so far, which of the new frames stands for it."""
        self.last: npt.NDArray[np.float32] | None = None

    def is_new(self, frame: Frames) -> bool:
        """(H, W, 3) uint8: whether it differs from the last new one; takes note of it."""
        new = True
        if self.threshold is not None:
            small = thumbnail(frame)
            new = self.last is None or float(np.abs(small - self.last).mean()) > self.threshold
            if new:
                self.last = small
        count = self.rows[-1] + 1 if self.rows else 0
        self.rows.append(count if new else count - 1)
        return new


def thumbnail(frame: Frames) -> npt.NDArray[np.float32]:
    """(H, W, 3) uint8 -> (32, 32, 3) float32, each the mean of what it covers. Frames of a group
    are one above the other."""
    small = Image.fromarray(frame.reshape(-1, *frame.shape[-2:])).resize(
        (SIDE, SIDE), Image.Resampling.BOX
    )
    return np.asarray(small, np.float32)
