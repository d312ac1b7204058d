"""Rows of features as they come, in one tensor.

Not in a list of small tensors: an allocator puts each of those into the room that the tower's large
ones have just left, which then no longer fits them, so that memory would grow by far more than the
features. Nor as they come: they may be views, which hold all that the tower has made.
"""

from __future__ import annotations

import torch
from torch import Tensor


class GrowingRows:
    """(n, ...) rows; n grows.

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
