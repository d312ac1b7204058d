"""How many frames: as many as the scores ask for, in place of a fixed L*.

Not in the paper, which names it as future work (supplement, 8.2 and 8.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bvllm_adapters.features import Selection

ROUNDING = 1e-3  # of log relevance: frames that differ by less are alike


@dataclass(frozen=True, kw_only=True)
class FrameCount:
    """The most relevant frames, each once, as many of them as a criterion finds.

    Axes: T frames of the video, K queries of the selector, n frames chosen.

    Args:
        by: "mass" or "gap"; see `count_by_mass` and `count_by_gap`.
        least, most: frames at least (all, of a shorter video) and at most.
        mass: share of the relevance that "mass" keeps, in (0, 1].
    """

    by: Literal["mass", "gap"]
    least: int
    most: int
    mass: float = 0.9

    def select(self, scores: Tensor, *, most: int | None = None) -> Selection:
        """(K, T) scores -> n one-hot rows in time order.

        Args:
            most: frames at most in place of the built limit; it goes before `least`.
        """
        relevance = frame_relevance(scores.detach())
        by_gap = self.by == "gap"
        found = count_by_gap(relevance) if by_gap else count_by_mass(relevance, self.mass)
        count = min(max(found, self.least), most or self.most, len(relevance))
        return most_relevant(relevance, count, choices=len(scores))


def frame_relevance(scores: Tensor) -> Tensor:
    """(K, T) scores -> (T,) float32: log of how much oftener than chance a frame is chosen.

    Training adds Gumbel noise to the scores before it divides by the temperature. Whatever that
    is, a query then chooses frame t with probability softmax(scores)_t (the Gumbel-max trick), and
    the mean over queries is the share of the choices that a frame gets; chance is 1 / T. So the
    scores are taken as they are. Divided by tau = 0.1, they would make much of differences that
    training's noise hides: each query would stand for one or two frames, and no more than about K
    could ever be relevant. Unlike the largest score of any query, a share of choices does not
    change with a constant that is added to all scores of a query.
    """
    queries, frames = scores.shape
    log_share = torch.logsumexp(torch.log_softmax(scores.float(), dim=1), dim=0)
    return log_share + math.log(frames / queries)


def count_by_mass(relevance: Tensor, mass: float) -> int:
    """The fewest most relevant frames that hold `mass` of all relevance beyond chance.

    What chance gives counts for nothing, since in an hour of video the irrelevant frames together
    are chosen as often as a relevant one. Where all frames are alike, one is enough.

    Args:
        relevance: (T,) as `frame_relevance` gives it. mass: a share in (0, 1].
    """
    beyond = torch.expm1(relevance).masked_fill(relevance < ROUNDING, 0.0)
    # On a GPU, running sums need not come out the same twice.
    held = beyond.sort(descending=True).values.cpu().cumsum(dim=0)
    return int((held < mass * held[-1]).sum()) + 1


def count_by_gap(relevance: Tensor) -> int:
    """The most relevant frames up to the largest drop of log relevance to the next one.

    Of equal drops the first counts; where all frames are alike, one is enough. The drop is looked
    for among all frames, since within a limit that cuts through the relevant ones there is none
    to be found: then as many as the limit allows are wanted.

    Args:
        relevance: (T,) as `frame_relevance` gives it.
    """
    ranked = relevance.sort(descending=True).values
    drops = (ranked[:-1] - ranked[1:]).tolist()
    largest = max(drops, default=0.0)
    return 1 if largest < ROUNDING else 1 + drops.index(largest)


def most_relevant(relevance: Tensor, count: int, *, choices: int) -> Selection:
    """The `count` most relevant frames in time order, of equals the earlier ones.

    Args:
        relevance: (T,) as `frame_relevance` gives it.
        choices: K, which the sizes sum to: each frame holds its share of the queries' choices, so
            that a budget too small for all frames keeps the most relevant.
    """
    ranked = relevance.sort(descending=True, stable=True).indices
    chosen = ranked[:count].sort().values
    size = choices * torch.softmax(relevance[chosen], dim=0)
    # A frame of no size could not be merged: its share of itself would be 0 / 0.
    size = size.clamp_min(torch.finfo(size.dtype).tiny)
    return Selection.whole(chosen, len(relevance), size)
