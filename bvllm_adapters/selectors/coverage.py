"""Frames that show what comes and goes, spread over the video: no question, no weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvllm_adapters.checks import check_choice, check_count, check_number
from bvllm_adapters.features import Selection, check_tensor
from bvllm_adapters.selectors.choosers import inverse_transform
from bvllm_adapters.selectors.covered import covered_mmr
from bvllm_adapters.selectors.scores import local_novelty, min_max, smoothed

Chooser = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(T, C) features, (T,) relevance from 0 to 1, (T,) seconds, K -> (K,) int64 different frames."""

SIDE = 16  # of a thumbnail, in pixels
FAINT = 1.0  # length of a thumbnail whose fields are about 0.04 away from its mean colour


class CoverageSelector(nn.Module):
    """Covered MMR (see `covered_mmr`) by local novelty: how much each frame differs from those of
    the seconds around it. Question-blind; by thumbnails it needs no model at all, and no frame
    passes a tower before it is chosen.

    Axes: T frames of the video, k of them at once, C' feature width, K frames wanted.

    Args:
        diversity: from 0, novelty alone, to 1, differences of the chosen frames alone.
        coverage: the share of the K frames that is held to equal bins of time; from 0 to 1.
        smooth_seconds: over which novelty is averaged; 0: not at all, as what is new for a second
            would be spread over its neighbours, which are picked then.
        novelty_seconds: before and after a frame, what it is new against; None: all frames are
            equally new, which makes this k-center with coverage.
        by: what sees the frames: "thumbnails", of 16 x 16 pixels; "tower", the host's own; or a
            module with `see`, such as a `RelevanceSelector`, whose scout it then is.
        choose: in place of covered MMR, see `bvllm_adapters.selectors.choosers`.
    """

    def __init__(
        self,
        *,
        diversity: float = 0.5,
        coverage: float = 0.5,
        smooth_seconds: float = 0.0,
        novelty_seconds: float | None = 40.0,
        by: Literal["thumbnails", "tower"] | nn.Module = "thumbnails",
        choose: Chooser | None = None,
    ) -> None:
        super().__init__()
        self.scout: Any = by if hasattr(by, "see") else None
        if self.scout is None:
            check_choice("by", by, ("thumbnails", "tower"))
        check_number("smooth_seconds", smooth_seconds, least=0)
        if novelty_seconds is not None:
            check_number("novelty_seconds", novelty_seconds, above=0)
        self.own_choice = choose
        self.choose = choose or covered(diversity, coverage)
        self.diversity, self.coverage = diversity, coverage
        self.smooth_seconds, self.novelty_seconds = smooth_seconds, novelty_seconds
        self.by = by if isinstance(by, str) else "scout"

    reads_question = False

    @property
    def name(self) -> str:
        """By which `named_selector` makes it; "custom": it does not."""
        if self.own_choice is None:
            return "coverage"
        by_name = self.own_choice is inverse_transform and self.scout is None
        return "inverse-transform" if by_name else "custom"

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments, as JSON."""
        names = ("diversity", "coverage", "smooth_seconds", "novelty_seconds", "by")
        return {name: getattr(self, name) for name in names}

    @property
    def sees(self) -> bool:
        """Whether `see` makes the features; else they are the host's own tower's."""
        return self.by != "tower"

    def see(self, frames: Tensor) -> Tensor:
        """(k, 3, H, W) RGB from 0 to 1 -> (k, C') what forward() chooses by."""
        seen: Tensor = thumbnails(frames) if self.scout is None else self.scout.see(frames)
        return seen

    def forward(
        self,
        cls: Tensor,
        question: str,
        *,
        seconds: Tensor,
        num_frames: int,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """Choose frames of one video; the same in training as in evaluation.

        Args:
            cls: (T, C') a feature of all frames. question: is not looked at.
            seconds: (T,) their times. num_frames: K. generator: is not needed.

        Returns:
            min(K, T) different whole frames in time order, with the (T,) scores of all.

        Raises:
            ValueError, TypeError: naming the argument, what came and what was wanted.
        """
        check_frames(cls, seconds, num_frames)
        scores = self.scores(cls, seconds)
        frames = self.choose(cls, scores, seconds, num_frames)
        return Selection.whole(frames, len(cls), scores=scores)

    def scores(self, cls: Tensor, seconds: Tensor) -> Tensor:
        """(T, C') -> (T,) float32 novelty of each frame, from 0 to 1."""
        if self.novelty_seconds is None:
            return torch.zeros(len(cls), device=cls.device)
        cls = shapes(cls) if self.by == "thumbnails" else F.normalize(cls.float(), dim=1)
        return novelty(cls, seconds, self.novelty_seconds, self.smooth_seconds).to(cls.device)

    def extra_repr(self) -> str:
        return (
            f"by={self.by!r}, diversity={self.diversity}, coverage={self.coverage}, "
            f"smooth_seconds={self.smooth_seconds}, novelty_seconds={self.novelty_seconds}"
        )


def covered(diversity: float, coverage: float) -> Chooser:
    """`covered_mmr` with these settings.

    Raises:
        ValueError, TypeError: one that is no number from 0 to 1.
    """
    check_number("diversity", diversity, least=0, most=1)
    check_number("coverage", coverage, least=0, most=1)
    return partial(covered_mmr, diversity=diversity, coverage=coverage)


def novelty(cls: Tensor, seconds: Tensor, width: float, smooth_seconds: float) -> Tensor:
    """(T, C') -> (T,) float32 on the CPU from 0 to 1: `local_novelty`, smoothed."""
    return min_max(smoothed(local_novelty(cls, seconds, width), seconds, smooth_seconds))


def thumbnails(frames: Tensor) -> Tensor:
    """(k, 3, H, W) -> (k, 768) float32: the mean colours of 16 x 16 fields of each."""
    return F.adaptive_avg_pool2d(frames.float(), SIDE).flatten(1)


def shapes(thumbnails: Tensor) -> Tensor:
    """(T, 768) thumbnails -> (T, 768) what is to be seen in each, without its mean colour and of
    unit length: light that changes all over a frame is nothing new.

    A frame of hardly any contrast, which may be nothing but noise, stays as faint as it is.
    """
    colours = thumbnails.float().unflatten(1, (3, -1))
    apart: Tensor = (colours - colours.mean(dim=2, keepdim=True)).flatten(1)
    length = apart.norm(dim=1, keepdim=True)
    unit: Tensor = apart / length.clamp_min(FAINT)
    return unit


def check_frames(cls: Tensor, seconds: Tensor, num_frames: int) -> None:
    """ValueError or TypeError unless these are features and times of frames, and a count."""
    check_tensor("cls", cls, "T C")
    check_tensor("seconds", seconds, "T")
    if len(seconds) != len(cls):
        raise ValueError(f"seconds: got {len(seconds)} times, wanted {len(cls)} as cls")
    if bool((seconds.diff() < 0).any()):
        raise ValueError("seconds: got times that go back, wanted them never to decrease")
    check_count("num_frames", num_frames)
