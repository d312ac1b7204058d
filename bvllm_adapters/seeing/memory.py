"""Features of frames that were seen: kept in memory, or seen again when they are wanted.

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


class GrowingRows:
    """(n, ...) rows of features as they come, in one tensor; n grows.

    Not in a list of small tensors: an allocator puts each of those into the room that the tower's
    large ones have just left, which then no longer fits them, so that memory would grow by far more
    than the features. Nor as they come: they may be views, which hold all that the tower has made.

    Args:
        expected: rows to come, if it is known; else the room for them doubles when it is full.
    """

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        self.count = 0
        self._room: Tensor | None = None

    def __len__(self) -> int:
        return self.count

    def append(self, rows: Tensor) -> None:
        """Copy (k, ...) rows behind those there are."""
        whole = self.count + len(rows)
        if self._room is None or whole > len(self._room):
            # Not as an inference tensor, which could not be written to outside of that mode.
            with torch.inference_mode(False), torch.no_grad():
                room = rows.new_empty(max(whole, self.expected, 2 * self.count), *rows.shape[1:])
                if self._room is not None:
                    room[: self.count] = self._room[: self.count]
                self._room = room
        with torch.no_grad():
            self._room[self.count : whole] = rows
        self.count = whole

    def cut(self, count: int) -> None:
        """Forget all rows from `count` on."""
        self.count = min(self.count, count)

    @property
    def tensor(self) -> Tensor:
        """(n, ...) a view, in which nothing changes as rows are appended."""
        if self._room is None:
            raise ValueError("rows: got none, wanted at least one")
        return self._room[: self.count]
