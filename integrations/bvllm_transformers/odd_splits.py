"""Splits of single families, whose pixels lie as no other's do.

Axes: T groups of a video, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bvllm_transformers.splits import Grid, Inputs, Split, given


@dataclass(frozen=True)
class Chunks(Grid):
    """Kimi: each row of the grid is some frames that the tower makes one group of."""

    loose: bool = True

    def single(self, inputs: Inputs) -> bool:
        return True

    def groups(self, inputs: Inputs) -> list[int]:
        return [1] * len(given(inputs, self.grid))

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        grid = given(inputs, self.grid)
        chosen = video + groups.to(grid.device)
        parts = inputs[self.pixels].split(grid.prod(dim=1).tolist())
        return {
            self.pixels: torch.cat([parts[i] for i in chosen.tolist()]),
            self.grid: grid[chosen],
        }

    def reduced(self, inputs: Inputs, kept: Sequence[Tensor]) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Segments(Grid):
    """MiniMax: rows of the grid are segments, whose groups the tower looks at together: a segment
    of which a group is chosen passes it whole."""

    loose: bool = True

    def single(self, inputs: Inputs) -> bool:
        return True

    def groups(self, inputs: Inputs) -> list[int]:
        return [1] * int(given(inputs, self.grid)[:, 0].sum())

    def weights(self, inputs: Inputs) -> list[int]:
        return [h * w for t, h, w in given(inputs, self.grid).tolist() for _ in range(t)]

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        grid = given(inputs, self.grid)
        segments = self._segments(inputs, video, groups)[0].unique()
        parts = inputs[self.pixels].split(grid.prod(dim=1).tolist())
        return {
            self.pixels: torch.cat([parts[i] for i in segments.tolist()]),
            self.grid: grid[segments],
        }

    def picked(self, inputs: Inputs, video: int, groups: Tensor, tokens: Tensor) -> Tensor:
        segments, first = self._segments(inputs, video, groups)
        looked = given(inputs, self.grid)[segments.unique()]
        each = len(tokens) // int(looked[:, 0].sum())  # those of a prompt are of one size
        begins = looked[:, 0].cumsum(0) - looked[:, 0]
        at = begins[torch.searchsorted(segments.unique(), segments)] + first
        frames: Tensor = tokens.unflatten(0, (-1, each))[at.to(tokens.device)]
        return frames.flatten(0, 1)

    def reduced(self, inputs: Inputs, kept: Sequence[Tensor]) -> dict[str, Any]:
        return {}

    def _segments(self, inputs: Inputs, video: int, groups: Tensor) -> tuple[Tensor, Tensor]:
        """(k,) twice: the segment of each group, and which of its groups it is."""
        lengths = given(inputs, self.grid)[:, 0]
        chosen = video + groups.to(lengths.device)
        ends = lengths.cumsum(0)
        segments = torch.searchsorted(ends, chosen, right=True)
        return segments, chosen - (ends - lengths)[segments]


@dataclass(frozen=True)
class Compressed(Grid):
    """VideoLLaMA3: of each frame the tokens alone that `mask` says, (tokens of all,) bool."""

    mask: str = "video_compression_mask"

    def single(self, inputs: Inputs) -> bool:
        mask = inputs.get(self.mask)
        return mask is not None and not bool(mask.all())

    def groups(self, inputs: Inputs) -> list[int]:
        groups = super().groups(inputs)
        return [1] * sum(groups) if self.single(inputs) else groups

    def weights(self, inputs: Inputs) -> list[int]:
        if self.single(inputs):
            return [int(part.sum()) for part in self._masks(inputs)]
        return [
            weight // int(size) ** 2
            for weight, size in zip(
                super().weights(inputs), given(inputs, self.beside[0]), strict=True
            )
        ]

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        if not self.single(inputs):
            return super().take(inputs, video, groups)
        grid, sizes = given(inputs, self.grid), given(inputs, self.beside[0])
        whole = torch.arange(len(grid), device=grid.device).repeat_interleave(grid[:, 0])
        frames = grid[whole] * grid.new_tensor([0, 1, 1]) + grid.new_tensor([1, 0, 0])
        chosen = video + groups.to(grid.device)
        parts = inputs[self.pixels].split(frames.prod(dim=1).tolist())
        return {
            self.pixels: torch.cat([parts[i] for i in chosen.tolist()]),
            self.grid: frames[chosen],
            self.beside[0]: sizes[whole[chosen].to(sizes.device)],
        }

    def picked(self, inputs: Inputs, video: int, groups: Tensor, tokens: Tensor) -> Tensor:
        if not self.single(inputs):
            return tokens
        masks = self._masks(inputs)
        kept = torch.cat([masks[video + group] for group in groups.tolist()])
        return tokens[kept.to(tokens.device)]

    def reduced(self, inputs: Inputs, kept: Sequence[Tensor]) -> dict[str, Any]:
        return {}

    def _masks(self, inputs: Inputs) -> list[Tensor]:
        """(P,) bool of each frame of the batch."""
        sizes = given(inputs, self.beside[0]).tolist()
        grid = given(inputs, self.grid).tolist()
        each = [
            h * w // size**2 for (t, h, w), size in zip(grid, sizes, strict=True) for _ in range(t)
        ]
        return list(inputs[self.mask].split(each))


@dataclass(frozen=True)
class Counted(Split):
    """Gemma 4: (N, patches, ...) of all frames one after another, how many are of each video
    beside them; patches whose position is -1 are none."""

    beside: tuple[str, ...] = ("video_position_ids",)
    counts: str = "num_frames_per_video"

    def groups(self, inputs: Inputs) -> list[int]:
        return [int(t) for t in given(inputs, self.counts).tolist()]

    def weights(self, inputs: Inputs) -> list[int]:
        begins = self._begins(inputs)
        real = (given(inputs, self.beside[0]) != -1).all(dim=-1).sum(dim=-1).tolist()
        return [real[begin] if begin < len(real) else 0 for begin in begins]

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        counts = given(inputs, self.counts)
        chosen = self._begins(inputs)[video] + groups
        taken = {name: given(inputs, name) for name in (self.pixels, *self.beside)}
        return {
            self.counts: counts.new_tensor([len(groups)]),
            **{name: value[chosen.to(value.device)] for name, value in taken.items()},
        }

    def _begins(self, inputs: Inputs) -> list[int]:
        counts = given(inputs, self.counts)
        return [int(begin) for begin in (counts.cumsum(0) - counts).tolist()]


@dataclass(frozen=True)
class Pooled(Split):
    """Molmo 2: (N, patches, ...) of all frames, and of each token the patches that it pools, by
    their numbers in the whole batch, -1 for none; (t, h, w) tokens of each video."""

    pooling: str = "video_token_pooling"
    grid: str = "video_grids"

    def groups(self, inputs: Inputs) -> list[int]:
        return [int(t) for t in given(inputs, self.grid)[:, 0].tolist()]

    def weights(self, inputs: Inputs) -> list[int]:
        return [h * w for _, h, w in given(inputs, self.grid).tolist()]

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        grid, pixels = given(inputs, self.grid), inputs[self.pixels]
        t, h, w = grid[video].tolist()
        first = int(grid[:video, 0].sum())
        begin = int(grid[:video].prod(dim=1).sum())
        groups = groups.to(pixels.device)
        rows = given(inputs, self.pooling)[begin : begin + t * h * w]
        chosen = rows.unflatten(0, (t, h * w))[groups]
        moved = (torch.arange(len(groups), device=pixels.device) - first - groups) * pixels.shape[1]
        chosen = torch.where(chosen < 0, chosen, chosen + moved[:, None, None])
        return {
            self.pixels: pixels[first + groups],
            self.pooling: chosen.flatten(0, 1),
            self.grid: grid.new_tensor([[len(groups), h, w]]),
        }


@dataclass(frozen=True)
class Packed(Split):
    """MiniCPM: (1, C, patch, columns) of all frames and slices of frames side by side, (h, w)
    patches of each beside them."""

    loose: bool = True
    sizes: str = "target_sizes_videos"

    def single(self, inputs: Inputs) -> bool:
        return True

    def groups(self, inputs: Inputs) -> list[int]:
        return [1] * len(given(inputs, self.sizes))

    def weights(self, inputs: Inputs) -> list[int]:
        return [h * w for h, w in given(inputs, self.sizes).tolist()]

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        sizes, pixels = given(inputs, self.sizes), inputs[self.pixels]
        chosen = video + groups.to(sizes.device)
        parts = pixels.split((sizes.prod(dim=1) * pixels.shape[2]).tolist(), dim=3)
        return {
            self.pixels: torch.cat([parts[i] for i in chosen.tolist()], dim=3),
            self.sizes: sizes[chosen],
        }

    def reduced(self, inputs: Inputs, kept: Sequence[Tensor]) -> dict[str, Any]:
        left = torch.tensor([len(groups) > 0 for groups in kept])
        sizes = given(inputs, self.sizes)
        return {self.sizes: sizes[left.to(sizes.device)]}
