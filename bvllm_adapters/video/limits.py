"""How much a source may ask for, before memory or time is given to it.

A file of a few bytes can declare pictures that fill any memory. Set these, as in
`limits.MAX_BYTES = 2**36`, or the environment variables BVLLM_MAX_BYTES and BVLLM_MAX_PIXELS, for
sources that are to have more.
"""

from __future__ import annotations

import os

MAX_PIXELS = int(os.environ.get("BVLLM_MAX_PIXELS", 2**26))
"""Of one picture of a video: 8192 x 8192. Of still images Pillow's own MAX_IMAGE_PIXELS holds."""
MAX_BYTES = int(os.environ.get("BVLLM_MAX_BYTES", 2**32))
"""Of all pictures that `read_video` holds at once: 4 GiB. Sources that are read frame by frame, as
models see them, need not be within it."""

LEAST_PIXELS, PIXELS_PER_BYTE = 2**30, 2**18
"""Of all pictures of a video together, in any file, and more for each byte that the file has. What
coders make of pictures that stay the same for hours is within it."""


class VideoError(ValueError):
    """A source cannot be read; says which and why."""


def check_memory(name: str, count: int, picture_bytes: int) -> None:
    """VideoError if so many pictures together are more than MAX_BYTES."""
    if count * picture_bytes > MAX_BYTES:
        raise VideoError(
            f"{name}: its {count} pictures are {count * picture_bytes / 2**30:.1f} GiB, wanted "
            f"{MAX_BYTES / 2**30:.1f} GiB at most at once; read fewer (fps=, max_frames=, start=, "
            "end=), or set BVLLM_MAX_BYTES or bvllm_adapters.video.limits.MAX_BYTES"
        )


def check_picture(name: str, width: int, height: int) -> None:
    """VideoError if one picture is more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{name}: its pictures are {width}x{height}, wanted {MAX_PIXELS} pixels at most; set "
            "BVLLM_MAX_PIXELS or bvllm_adapters.video.limits.MAX_PIXELS for larger ones"
        )


def check_work(name: str, count: int, width: int, height: int, size: int) -> None:
    """VideoError if a file of `size` bytes declares more pictures than it can honestly hold."""
    most = max(LEAST_PIXELS, MAX_PIXELS) + PIXELS_PER_BYTE * size
    if count * width * height > most:
        raise VideoError(
            f"{name}: {count} pictures of {width}x{height} in {size} bytes, wanted {most} pixels "
            "at most; set BVLLM_MAX_PIXELS or bvllm_adapters.video.limits.MAX_PIXELS for more"
        )
