"""How the frames of a batch's videos lie in the arguments of a model.

A *group* is what the tower takes as one: a frame, or a pair of frames in the Qwen family. Towers
look at each group by itself, so that the chosen groups alone give the tokens that they would give
among all.

Axes: T groups of a video, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Inputs = Mapping[str, Any]


class Split(Protocol):
    """Which part of the arguments belongs to which video and group."""

    @property
    def pixels(self) -> str:
        """The argument that holds pixels."""

    def groups(self, inputs: Inputs) -> list[int]:
        """T of each video of the batch."""

    def weights(self, inputs: Inputs) -> list[int]:
        """Numbers in proportion to the tokens of one group of each video."""

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        """The arguments of the encoder for these groups of one video, (k,) indices."""

    def reduced(self, inputs: Inputs, kept: list[Tensor]) -> dict[str, Any]:
        """The arguments beside pixels that say how many groups there are, of the kept ones."""


@dataclass(frozen=True)
class Grid:
    """Patches of all videos in rows, (t, h, w) of each video beside them."""

    pixels: str = "pixel_values_videos"
    grid: str = "video_grid_thw"

    def groups(self, inputs: Inputs) -> list[int]:
        return [int(t) for t in inputs[self.grid][:, 0].tolist()]

    def weights(self, inputs: Inputs) -> list[int]:
        return [h * w for _, h, w in inputs[self.grid].tolist()]

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        grid = inputs[self.grid]
        begin = int(grid[:video].prod(dim=1).sum())
        t, h, w = grid[video].tolist()
        rows = inputs[self.pixels][begin : begin + t * h * w].unflatten(0, (t, h * w))
        return {
            self.pixels: rows[groups.to(rows.device)].flatten(0, 1),
            self.grid: grid.new_tensor([[len(groups), h, w]]),
        }

    def reduced(self, inputs: Inputs, kept: list[Tensor]) -> dict[str, Any]:
        grid = inputs[self.grid].clone()
        grid[:, 0] = grid.new_tensor([len(groups) for groups in kept])
        return {self.grid: grid[grid[:, 0] > 0]}


@dataclass(frozen=True)
class Clip:
    """(B, T, ...): the videos of a batch, all of one length."""

    pixels: str = "pixel_values_videos"

    def groups(self, inputs: Inputs) -> list[int]:
        videos, frames = inputs[self.pixels].shape[:2]
        return [frames] * videos

    def weights(self, inputs: Inputs) -> list[int]:
        return [1] * len(inputs[self.pixels])

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        pixels = inputs[self.pixels][video]
        return {self.pixels: pixels[groups.to(pixels.device)][None]}

    def reduced(self, inputs: Inputs, kept: list[Tensor]) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Frames:
    """(N, ...): all frames of the batch one after another, as single images."""

    pixels: str = "pixel_values"

    def groups(self, inputs: Inputs) -> list[int]:
        return [1] * len(inputs[self.pixels])

    def weights(self, inputs: Inputs) -> list[int]:
        return [1] * len(inputs[self.pixels])

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        pixels = inputs[self.pixels]
        return {self.pixels: pixels[video + groups.to(pixels.device)]}

    def reduced(self, inputs: Inputs, kept: list[Tensor]) -> dict[str, Any]:
        return {}
