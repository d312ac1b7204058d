"""Patch features of frames that were seen: kept in memory, or seen again when they are wanted.

Axes: k frames that are wanted, P patches of a frame, C vision width, S the tower's image size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def in_chunks(chunks: Sequence[Tensor], rows: Sequence[int], device: torch.device) -> Tensor:
    """Rows of what `torch.cat(chunks)` would be; the chunks are of one length but for the last."""
    size = len(chunks[0])
    return torch.stack([chunks[i // size][i % size].to(device) for i in rows])


class LookAgain:
    """Of just the frames that are wanted, seen when they are; those of late are kept.

    Frames are looked at one at a time, so that what comes of one does not depend, to the last bit,
    on which others were wanted with it or are known already.

    Args:
        read: ascending and distinct frames -> (1, 3, S, S) pixels of each, one by one.
        look: (1, 3, S, S) pixels -> (1, P, C) patches.
        cache_bytes: of patches kept for the next question; the least recently used go first.
    """

    def __init__(
        self,
        read: Callable[[Sequence[int]], Iterator[Tensor]],
        look: Callable[[Tensor], Tensor],
        cache_bytes: int,
    ) -> None:
        self.read, self.look, self.cache_bytes = read, look, cache_bytes
        self.cache: OrderedDict[int, Tensor] = OrderedDict()

    def __call__(self, frames: Sequence[int]) -> Tensor:
        """Ascending and distinct frames -> (k, P, C)."""
        found = {i: self.cache.pop(i) for i in frames if i in self.cache}
        missing = [i for i in frames if i not in found]
        if missing:
            for i, pixels in zip(missing, self.read(missing), strict=True):
                found[i] = self.look(pixels)[0]
        self.cache.update({i: found[i] for i in frames})
        held = sum(patches.nbytes for patches in self.cache.values())
        while held > self.cache_bytes:
            held -= self.cache.popitem(last=False)[1].nbytes
        return torch.stack([found[i] for i in frames])
