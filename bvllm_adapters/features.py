"""The three things that flow: FrameFeatures -> Selection -> VisualTokens.

Axes: T frames of the video, P patches of a frame, C vision width, K choices of the selector,
M choices after merging, N visual tokens, D token width. One video each, so no batch axis and
no mask; a batch is a list.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bvllm_adapters.config import FrameFeature
from bvllm_adapters.context import in_float32

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
        patches_per_frame: P, where patches are a function; no more than a hint of what it gives.
        beside: tokens that a host puts beside those of frames; they count.
        layout: whatever a host says of how the patches lie (their grid, tiles), handed back to it
            untouched; None: the host does not ask.
        room: tokens at most that a host's prompt has places for; None: any number.

    Raises:
        ValueError: naming the argument, for no frames, a wrong shape or dtype, NaN or inf. Patches
            are looked at for these when they are read, so that nobody waits for what is not chosen.
    """

    cls: Tensor
    patches: Tensor | PatchReader
    seconds: Tensor = field(default=None)  # type: ignore[assignment]
    patches_per_frame: int | None = None
    beside: int = 0
    layout: Any = None
    room: int | None = None

    def __post_init__(self) -> None:
        check_tensor("cls", self.cls, "T C")
        frames = len(self.cls)
        if isinstance(self.patches, Tensor):
            check_tensor("patches", self.patches, "T P C", finite=False)
            if len(self.patches) != frames:
                raise ValueError(f"patches: got {len(self.patches)} frames, wanted {frames} as cls")
            object.__setattr__(self, "patches_per_frame", self.patches.shape[1])
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
        known = self.seconds.untyped_storage().device.type != "meta"
        if known and bool((self.seconds.diff() < 0).any()):
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


class Selection:
    """Which frames were chosen, as weights: the matrix S of the paper (eq. 1), in time order.

    Frames that are chosen whole are held as their indices, so that a selection of all frames of a
    long video takes no more than a few numbers a frame.

    Args:
        weights: (M, T) float32, each row one choice over the video's frames, summing to 1.
        size: (M,) float32, how many of the selector's choices a row holds; they sum to K.
        support: (M, T) bool, the frames that a row may give weight, which is zero elsewhere, and
            that gradients reach; None: all.

    `scores` are the (T,) float32 numbers that a selector without training chose frames by; None
    where there are none. `note` is what whoever asks should know of how the question was read.
    `query_scores` are the (K, T) float32 ones of each query of a learned selector.
    """

    scores: Tensor | None = None
    query_scores: Tensor | None = None
    note: str | None = None

    def __init__(self, weights: Tensor, size: Tensor, support: Tensor | None = None) -> None:
        self.size, self.support = size, support
        self._weights: Tensor | None = weights
        self._frame: Tensor | None = None
        self.num_frames = weights.shape[1]
        """T, of the video."""

    @classmethod
    def of(cls, weights: Tensor, support: Tensor | None = None) -> Selection:
        """Choices that nothing has been merged into yet, brought into time order."""
        return cls(weights, weights.new_ones(len(weights)), support).in_time_order()

    @classmethod
    def whole(
        cls,
        frame: Tensor,
        num_frames: int,
        size: Tensor | None = None,
        *,
        scores: Tensor | None = None,
        note: str | None = None,
    ) -> Selection:
        """Frames that are chosen whole, brought into time order.

        Args:
            frame: (M,) int64 indices. num_frames: T. size: (M,); None: one choice each.
            scores, note: see the class.
        """
        if size is None:
            size = torch.ones(len(frame), dtype=torch.float32, device=frame.device)
        made = cls.__new__(cls)
        made.size, made.support = size, None
        made._weights, made._frame, made.num_frames = None, frame, num_frames
        made.scores, made.note = scores, note
        return made.in_time_order()

    @classmethod
    def everything(cls, num_frames: int, device: torch.device | None = None) -> Selection:
        """Each frame once."""
        return cls.whole(torch.arange(num_frames, device=device), num_frames)

    @classmethod
    def single_frame(cls, choices: int, device: torch.device | None = None) -> Selection:
        """An image, or a video of one frame: all choices fall on it."""
        size = torch.full((1,), float(choices), dtype=torch.float32, device=device)
        return cls.whole(torch.zeros(1, dtype=torch.int64, device=device), 1, size)

    @property
    def weight(self) -> Tensor:
        """(M,) float32, by which what is left over of a budget is shared out: sizes and, of equal
        ones, the frames' scores."""
        if self.scores is None:
            return self.size
        return self.size + self.scores.to(self.size)[self.frame] / 2

    @property
    def is_whole(self) -> bool:
        """Whether each row is one frame, held as its index."""
        return self._weights is None

    @property
    def weights(self) -> Tensor:
        """(M, T); of whole frames it is made anew, with a number for each of all frames."""
        if self._weights is not None:
            return self._weights
        assert self._frame is not None
        return F.one_hot(self._frame, self.num_frames).to(torch.float32)

    @property
    def frame(self) -> Tensor:
        """(M,) int64: the frame of the largest weight in each row, the first of equals."""
        return first_max(self.weights) if self._frame is None else self._frame

    def in_time_order(self) -> Selection:
        """Rows by their main frame, then by their mean frame, then as they were."""
        if self._weights is None:
            return self[torch.argsort(self.frame, stable=True)]
        weights = self._weights.detach()
        with in_float32(weights):  # half of it would not tell frame 256 from frame 257
            position = torch.arange(self.num_frames, device=weights.device, dtype=weights.dtype)
            order = torch.argsort(weights @ position, stable=True)
        order = order[torch.argsort(self.frame[order], stable=True)]
        return self[order]

    def __getitem__(self, rows: Tensor) -> Selection:
        found = copy.copy(self)
        found.size = self.size[rows]
        found._weights, found._frame, found.support = (
            None if part is None else part[rows]
            for part in (self._weights, self._frame, self.support)
        )
        return found

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What the language model reads of one video, and where each token comes from.

    Args:
        tokens: (N, D) in time order.
        slot: (N,) int64, the row of `selection` a token belongs to; never decreases.
        size: (N,) float32, how many outputs of the spatial sampler it holds (of the host's own
            tokens, where there is no sampler).
        selection: the M chosen frames with their weights; rows that got no token included.
        seconds: (T,) time of the video's frames; empty where the times are not known.
        place: (N,) int64, where a token's earliest member stood among the outputs of its row, from
            0; increases within a row. None: a merger of one's own did not say it.
        layout: what the host said of the video, see `FrameFeatures`.
        beside: as many of the host's tokens of no frame as the budget leaves room for.
        members: (M, R) int64, inside of `looking`: the token that each output of the spatial
            sampler is in, -1 where its frame got none.
        looked: (M, R, P) float32, likewise: where each of them looked, from its cross-attention;
            rows sum to 1. None: without a sampler.
    """

    tokens: Tensor
    slot: Tensor
    size: Tensor
    selection: Selection
    seconds: Tensor
    place: Tensor | None = None
    layout: Any = None
    beside: int = 0
    members: Tensor | None = None
    looked: Tensor | None = None

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
    if selection.is_whole:
        used, back = selection.frame.unique(return_inverse=True)
        return transform(_read(patches, used))[back]
    weights = selection.weights
    if not weights.requires_grad:
        used = weights.any(dim=0)
    elif selection.support is not None:
        used = selection.support.any(dim=0)
    else:
        used = torch.ones_like(weights[0], dtype=torch.bool)
    used = used.nonzero().squeeze(1)
    frames = transform(_read(patches, used))
    weights = weights[:, used]
    if not weights.requires_grad and bool((weights.amax(dim=1) == 1).all()):
        return frames[weights.argmax(dim=1)]
    with in_float32(frames):
        exact = torch.promote_types(frames.dtype, torch.float32)
        mixed = torch.einsum("mt,tpc->mpc", weights.to(exact), frames.to(exact))
        return mixed.to(frames.dtype)


def _read(patches: Tensor | PatchReader, used: Tensor) -> Tensor:
    """(k, P, C) patches of these frames, where their indices are."""
    if isinstance(patches, Tensor):
        chosen = patches[used.to(patches.device)].to(used.device)
        check_tensor("patches", chosen, "k P C")
        return chosen
    frames = patches(used)
    check_tensor("patches(indices)", frames, "k P C")
    if len(frames) != len(used):
        raise ValueError(
            f"patches(indices): got {len(frames)} frames, wanted the {len(used)} asked for"
        )
    return frames


def first_max(x: Tensor) -> Tensor:
    """(..., T) -> (...) where each row is largest; of equals the first, which argmax does not
    promise on a GPU."""
    position = torch.arange(x.shape[-1], device=x.device)
    return torch.where(x == x.amax(dim=-1, keepdim=True), position, len(position)).amin(dim=-1)


def check_tensor(name: str, value: object, axes: str, *, finite: bool = True) -> None:
    """ValueError unless `value` is a float tensor, not empty, with these axes, and maybe finite."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {type(value).__name__}, wanted a tensor ({axes})")
    wanted = f"({', '.join(axes.split())})"
    shape = tuple(value.shape)
    if not value.is_floating_point():
        raise ValueError(f"{name}: got dtype {value.dtype}, wanted floating point {wanted}")
    if value.dim() != len(axes.split()) or 0 in shape:
        raise ValueError(f"{name}: got shape {shape}, wanted {wanted} with no empty axis")
    if not finite or value.untyped_storage().device.type == "meta":  # of fake tensors too
        return
    # A finite sum proves that all values are finite, without a mask as large as the tensor. A sum
    # that is not may have overflowed, so only then each value is looked at.
    if not math.isfinite(value.detach().sum(dtype=torch.float32).item()):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: got NaN or inf, wanted finite numbers")
