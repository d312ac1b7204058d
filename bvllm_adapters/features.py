"""The three things that flow: FrameFeatures -> Selection -> VisualTokens.

Axes: T frames of the video, P patches of a frame, C vision width, K choices of the selector,
M choices after merging, N visual tokens, D token width. One video each, so no batch axis and
no mask; a batch is a list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from bvllm_adapters.config import FrameFeature

PatchReader = Callable[[Tensor], Tensor]
"""(k,) int64 frame indices, ascending and distinct -> (k, P, C) patch features."""


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """What the vision encoder saw of one video; an image is a video of one frame.

    Args:
        cls: (T, C) one feature per frame, from which frames are selected.
        patches: (T, P, C) features within each frame, or a function that gives them for the
            frames asked for, so that the others need never be encoded or kept.
        seconds: (T,) time of each frame from the video's start, never decreasing;
            None: one frame a second.

    Raises:
        ValueError: naming the argument, for no frames, a wrong shape or dtype, NaN or inf.
    """

    cls: Tensor
    patches: Tensor | PatchReader
    seconds: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_tensor("cls", self.cls, "T C")
        frames = len(self.cls)
        if isinstance(self.patches, Tensor):
            check_tensor("patches", self.patches, "T P C")
            if len(self.patches) != frames:
                raise ValueError(f"patches: got {len(self.patches)} frames, wanted {frames} as cls")
        elif not callable(self.patches):
            raise ValueError(
                f"patches: got {type(self.patches).__name__}, wanted a (T, P, C) tensor "
                "or a function of frame indices"
            )
        if self.seconds is None:
            object.__setattr__(self, "seconds", torch.arange(frames, dtype=torch.float64))
        check_tensor("seconds", self.seconds, "T")
        if len(self.seconds) != frames:
            raise ValueError(f"seconds: got {len(self.seconds)} times, wanted {frames} as cls")
        if bool((self.seconds.diff() < 0).any()):
            raise ValueError("seconds: got times that go back, wanted them never to decrease")

    @classmethod
    def pooled(
        cls, patches: Tensor, how: Literal["mean", "max"], seconds: Tensor | None = None
    ) -> FrameFeatures:
        """Features of a tower without CLS token: the mean or maximum of (T, P, C) patches."""
        check_tensor("patches", patches, "T P C")
        if how not in ("mean", "max"):
            raise ValueError(f"how: got {how!r}, wanted 'mean' or 'max'")
        feature = patches.mean(dim=1) if how == "mean" else patches.amax(dim=1)
        return cls(feature, patches, seconds)  # type: ignore[arg-type]

    @property
    def num_frames(self) -> int:
        return len(self.cls)


def frame_and_patches(
    tokens: Tensor, *, has_cls: bool, frame_feature: FrameFeature
) -> tuple[Tensor, Tensor]:
    """A tower's (k, 1 + P, C) tokens, (k, P, C) without CLS -> (k, C) features, (k, P, C) patches.

    Args:
        frame_feature: what stands for a frame: its CLS token, or the mean or maximum of patches.

    Raises:
        ValueError: "cls" of a tower without CLS token.
    """
    patches = tokens[:, 1:] if has_cls else tokens
    if frame_feature == "mean":
        return patches.mean(dim=1), patches
    if frame_feature == "max":
        return patches.amax(dim=1), patches
    if not has_cls:
        raise ValueError(
            "frame_feature: got 'cls', wanted 'mean' or 'max' of a tower without CLS token"
        )
    return tokens[:, 0], patches


@dataclass(frozen=True, eq=False)
class Selection:
    """Which frames were chosen, as weights: the matrix S of the paper (eq. 1), in time order.

    Args:
        weights: (M, T) float32, each row one choice over the video's frames, summing to 1.
        size: (M,) float32, how many of the selector's choices a row holds; they sum to K.
        support: (M, T) bool, the frames that a row may give weight, which is zero elsewhere, and
            that gradients reach; None: all.
    """

    weights: Tensor
    size: Tensor
    support: Tensor | None = None

    @classmethod
    def of(cls, weights: Tensor, support: Tensor | None = None) -> Selection:
        """Choices that nothing has been merged into yet, brought into time order."""
        return cls(weights, weights.new_ones(len(weights)), support).in_time_order()

    @classmethod
    def everything(cls, num_frames: int, device: torch.device | None = None) -> Selection:
        """Each frame once."""
        return cls.of(torch.eye(num_frames, device=device))

    @classmethod
    def single_frame(cls, choices: int, device: torch.device | None = None) -> Selection:
        """An image, or a video of one frame: all choices fall on it."""
        return cls(torch.ones(1, 1, device=device), torch.full((1,), float(choices), device=device))

    @property
    def frame(self) -> Tensor:
        """(M,) int64: the frame of the largest weight in each row, the first of equals."""
        # Equal weights: argmax promises no order on a GPU, so the first is looked for.
        largest = self.weights.amax(dim=1, keepdim=True)
        position = torch.arange(self.weights.shape[1], device=self.weights.device)
        return torch.where(self.weights == largest, position, len(position)).amin(dim=1)

    def in_time_order(self) -> Selection:
        """Rows by their main frame, then by their mean frame, then as they were."""
        position = torch.arange(
            self.weights.shape[1], device=self.weights.device, dtype=self.weights.dtype
        )
        order = torch.argsort(self.weights.detach() @ position, stable=True)
        order = order[torch.argsort(self.frame[order], stable=True)]
        return self[order]

    def __getitem__(self, rows: Tensor) -> Selection:
        support = None if self.support is None else self.support[rows]
        return Selection(self.weights[rows], self.size[rows], support)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What the language model reads of one video, and where each token comes from.

    Args:
        tokens: (N, D) in time order.
        slot: (N,) int64, the row of `selection` a token belongs to; never decreases.
        size: (N,) float32, how many outputs of the spatial sampler it holds.
        selection: the M chosen frames with their weights; rows that got no token included.
        seconds: (T,) time of the video's frames; empty where the times are not known.
    """

    tokens: Tensor
    slot: Tensor
    size: Tensor
    selection: Selection
    seconds: Tensor

    @property
    def frame(self) -> Tensor:
        """(N,) int64: the (first) source frame of each token in the video; never decreases."""
        return self.selection.frame[self.slot]

    def with_tokens(self, tokens: Tensor) -> VisualTokens:
        return replace(self, tokens=tokens)

    def __len__(self) -> int:
        return len(self.tokens)


def mix(
    selection: Selection, patches: Tensor | PatchReader, transform: Callable[[Tensor], Tensor]
) -> Tensor:
    """V* = S V (paper, eq. 1): M choices of T frames, (T, P, C) patches -> (M, P, C) frames.

    `transform` (a layer norm) is applied to each frame before it is mixed. Frames that no row
    gives any weight are not touched, unless gradients must reach their weights; where each row
    takes one frame whole, this is a gather.
    """
    weights = selection.weights
    if not weights.requires_grad:
        used = weights.any(dim=0)
    elif selection.support is not None:
        used = selection.support.any(dim=0)
    else:
        used = torch.ones_like(weights[0], dtype=torch.bool)
    used = used.nonzero().squeeze(1)
    if isinstance(patches, Tensor):
        frames = patches[used.to(patches.device)].to(weights.device)
    else:
        frames = patches(used)
        check_tensor("patches(indices)", frames, "k P C")
        if len(frames) != len(used):
            raise ValueError(
                f"patches(indices): got {len(frames)} frames, wanted the {len(used)} asked for"
            )
    frames = transform(frames)
    weights = weights[:, used]
    if not weights.requires_grad and bool((weights.amax(dim=1) == 1).all()):
        return frames[weights.argmax(dim=1)]
    return torch.einsum("mt,tpc->mpc", weights.to(frames.dtype), frames)


def check_tensor(name: str, value: object, axes: str) -> None:
    """ValueError unless `value` is a finite float tensor, not empty, with these axes."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {type(value).__name__}, wanted a tensor ({axes})")
    wanted = f"({', '.join(axes.split())})"
    shape = tuple(value.shape)
    if not value.is_floating_point():
        raise ValueError(f"{name}: got dtype {value.dtype}, wanted floating point {wanted}")
    if value.dim() != len(axes.split()) or 0 in shape:
        raise ValueError(f"{name}: got shape {shape}, wanted {wanted} with no empty axis")
    # A finite sum proves that all values are finite, without a mask as large as the tensor. A sum
    # that is not may have overflowed, so only then each value is looked at.
    if not value.is_meta and not bool(value.sum(dtype=torch.float32).isfinite()):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: got NaN or inf, wanted finite numbers")
