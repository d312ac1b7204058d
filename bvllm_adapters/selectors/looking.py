"""A selector looks at a video, a few frames at a time; by its mark each is known again."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bvllm_adapters.video.frames import Frames, FrameSource
from bvllm_adapters.video.prefetch import ahead
from bvllm_adapters.weights.device import device_of

MOST_VALUES = 2**25  # of the pixels that are looked at together
MOST_FRAMES = 32  # likewise
CHUNKS_AHEAD = 1  # that are decoded while others are looked at


def look(
    source: FrameSource, selector: Any, marks: list[int], progress: Callable[[int], object]
) -> Tensor:
    """(T, C') what the selector sees of all frames, on the CPU.

    Args:
        marks: that of each frame goes in here.
        progress: called with how many frames are read, in another thread.
    """
    chunks = _read_chunks(source, marks, progress)
    with ahead(chunks, CHUNKS_AHEAD) as ready:
        return torch.cat([_seen(selector, frames) for frames in ready])


def mark(frame: Frames) -> int:
    """By which a frame is known again."""
    return zlib.crc32(np.ascontiguousarray(frame).data)


def _read_chunks(
    source: FrameSource, marks: list[int], progress: Callable[[int], object]
) -> Iterator[Frames]:
    """(k, H, W, 3) neighbours, as many as are looked at together."""
    held: list[Frames] = []
    for done, frame in enumerate(source.read(np.arange(len(source))), start=1):
        marks.append(mark(frame))
        held.append(frame)
        progress(done)
        full = len(held) == MOST_FRAMES or (len(held) + 1) * frame.size > MOST_VALUES
        if full or done == len(source):
            yield np.stack(held)
            held = []


@torch.no_grad()
def _seen(selector: Any, frames: Frames) -> Tensor:
    """(k, H, W, 3) uint8 -> (k, C') features, on the CPU."""
    pixels = torch.from_numpy(frames).to(device_of(selector)).permute(0, 3, 1, 2)
    seen: Tensor = selector.see(pixels.float().div_(255))
    return seen.cpu()
