"""A frame as a small picture."""

from __future__ import annotations

import io

from PIL import Image

from bvllm_adapters.video.frames import Frames

SIDE = 320  # pixels of the longest edge at most
QUALITY = 82  # of JPEG


def small_jpeg(frame: Frames, side: int = SIDE) -> bytes:
    """(H, W, 3), or the first of a group (n, H, W, 3) -> a JPEG file."""
    image = Image.fromarray(frame if frame.ndim == 3 else frame[0])
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
