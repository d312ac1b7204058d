"""How the frames of a batch's videos lie in the arguments of a model.

A *group* is what the tower takes as one: a frame, or a pair of frames in the Qwen family. Towers
look at each group by itself, so that the chosen groups alone give the tokens that they would give
among all.

Axes: T groups of a video, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Inputs = Mapping[str, Any]


def given(inputs: Inputs, name: str) -> Any:
    """An argument that pixels need; ValueError: it is not there."""
    if inputs.get(name) is None:
        raise ValueError(f"{name}: got None beside pixels, wanted what the processor gives")
    return inputs[name]


@dataclass(frozen=True)
class Split:
    """Which part of the arguments belongs to which video and group.

    Args:
        pixels: the argument that holds pixels.
        beside: further arguments of the encoder, with a row for each that pixels have one for.
        loose: whether what is counted as one video may be several, with words between them.
    """

    pixels: str = "pixel_values_videos"
    beside: tuple[str, ...] = ()
    loose: bool = False

    def single(self, inputs: Inputs) -> bool:
        """Whether each group is counted as a video of its own, as the prompt alone tells which
        belong together."""
        return False

    def are_images(self, inputs: Inputs) -> bool:
        """Whether pixels are images of unlike numbers of tokens, which the encoder alone knows."""
        return False

    def groups(self, inputs: Inputs) -> list[int]:
        """T of each video of the batch."""
        raise NotImplementedError

    def weights(self, inputs: Inputs) -> list[int]:
        """Numbers in proportion to the tokens of one group of each video."""
        return [1] * len(self.groups(inputs))

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        """The arguments of the encoder for these groups of one video, (k,) indices; where groups
        are counted as videos, for these from a first one on."""
        raise NotImplementedError

    def picked(self, inputs: Inputs, video: int, groups: Tensor, tokens: Tensor) -> Tensor:
        """(n, D) of what `take` gave the encoder -> those of the groups."""
        return tokens

    def reduced(self, inputs: Inputs, kept: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments beside pixels that say how many groups there are, of the kept ones of each
        video."""
        return {}


@dataclass(frozen=True)
class Grid(Split):
    """Patches of all videos in rows, (t, h, w) of each video beside them.

    Args:
        each: how many of t the tower makes one group of.
    """

    grid: str = "video_grid_thw"
    each: int = 1

    def groups(self, inputs: Inputs) -> list[int]:
        return [int(t) // self.each for t in given(inputs, self.grid)[:, 0].tolist()]

    def weights(self, inputs: Inputs) -> list[int]:
        return [h * w for _, h, w in given(inputs, self.grid).tolist()]

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        grid = given(inputs, self.grid)
        begin = int(grid[:video].prod(dim=1).sum())
        t, h, w = grid[video].tolist()
        rows = inputs[self.pixels][begin : begin + t * h * w].unflatten(0, (-1, self.each * h * w))
        return {
            self.pixels: rows[groups.to(rows.device)].flatten(0, 1),
            self.grid: grid.new_tensor([[len(groups) * self.each, h, w]]),
            **{name: given(inputs, name)[video : video + 1] for name in self.beside},
        }

    def reduced(self, inputs: Inputs, kept: Sequence[Tensor]) -> dict[str, Any]:
        grid = given(inputs, self.grid).clone()
        grid[:, 0] = grid.new_tensor([len(groups) * self.each for groups in kept])
        return {self.grid: grid[grid[:, 0] > 0]}


@dataclass(frozen=True)
class Clip(Split):
    """(B, T, ...): the videos of a batch, all of one length."""

    def groups(self, inputs: Inputs) -> list[int]:
        videos, frames = inputs[self.pixels].shape[:2]
        return [frames] * videos

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        pixels = inputs[self.pixels][video]
        beside = {name: inputs[name] for name in self.beside if inputs.get(name) is not None}
        return {
            self.pixels: pixels[groups.to(pixels.device)][None],
            **{name: value[video : video + 1] for name, value in beside.items()},
        }


@dataclass(frozen=True)
class PaddedClip(Clip):
    """(B, T, ...): all frames of each prompt; those that are all zero fill up and are none."""

    def groups(self, inputs: Inputs) -> list[int]:
        return [len(frames) for frames in self._real(inputs)]

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        frames = self._real(inputs)[video]
        names = [self.pixels, *(name for name in self.beside if inputs.get(name) is not None)]
        return {name: inputs[name][video][frames[groups.to(frames.device)]][None] for name in names}

    def _real(self, inputs: Inputs) -> list[Tensor]:
        real = inputs[self.pixels].flatten(2).ne(0).any(dim=2)
        if not bool(real.any()):
            real[0, 0] = True  # the model looks at one all the same
        return [row.nonzero().squeeze(1) for row in real]


@dataclass(frozen=True)
class Frames(Split):
    """(N, ...): all frames of the batch one after another, as single images.

    Args:
        ragged: an argument that comes only with images of unlike numbers of tokens.
    """

    pixels: str = "pixel_values"
    loose: bool = True
    ragged: str | None = None

    def single(self, inputs: Inputs) -> bool:
        return True

    def are_images(self, inputs: Inputs) -> bool:
        return self.ragged is not None and inputs.get(self.ragged) is not None

    def groups(self, inputs: Inputs) -> list[int]:
        return [1] * len(inputs[self.pixels])

    def take(self, inputs: Inputs, video: int, groups: Tensor) -> dict[str, Any]:
        pixels = inputs[self.pixels]
        return {self.pixels: pixels[video + groups.to(pixels.device)]}


@dataclass(frozen=True)
class Images(Split):
    """Images alone, each a visual input of its own."""

    pixels: str = "pixel_values"

    def are_images(self, inputs: Inputs) -> bool:
        return True
