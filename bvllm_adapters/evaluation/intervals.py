"""How sure a share of right answers is."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

Z95 = 1.959963984540054  # of the normal distribution, two-sided 95 %


def share(right: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """The share of right answers with a 95 % interval: (share, low, high), from 0 to 1.

    Args:
        right: for each video, whether each answer about it was right; lengths may differ.

    Wilson's interval (Wilson, 1927) for as many independent answers as these are worth: answers
    about one video are alike, so they are worth fewer than their number, down to one a video
    (Kish's design effect, from the spread of the videos' sums).

    Raises:
        ValueError: no answers.
    """
    videos = [answers for answers in right if len(answers)]
    count = sum(map(len, videos))
    if count == 0:
        raise ValueError("right: got no answers, wanted at least one")
    p = sum(map(sum, videos)) / count
    worth = float(len(videos))
    if 0 < p < 1 and len(videos) > 1:
        spread = sum((sum(answers) - p * len(answers)) ** 2 for answers in videos)
        variance = spread / count**2 * len(videos) / (len(videos) - 1)
        worth = min(max(p * (1 - p) / variance, worth), count) if variance else float(count)
    return p, *wilson(p, worth)


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share p of n independent answers; n need not be whole."""
    middle = p + Z95**2 / (2 * n)
    half = Z95 * sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    whole = 1 + Z95**2 / n
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def bootstrap(
    right: Sequence[Sequence[bool]], *, seed: int = 0, draws: int = 10_000
) -> tuple[float, float, float]:
    """The share of right answers with a 95 % interval: (share, low, high), from 0 to 1.

    Percentiles of the share over as many videos drawn anew, with replacement, each with all its
    answers: a cluster bootstrap, as answers about one video are alike. Where all videos have the
    same share, drawing them anew says nothing, and it is `share`'s interval.

    Args:
        right: for each video, whether each answer about it was right; lengths may differ.
        seed: of the draws; the same gives the same interval.

    Raises:
        ValueError: no answers.
    """
    videos = [answers for answers in right if len(answers)]
    p, low, high = share(videos)
    rights = np.array([sum(answers) for answers in videos], np.float64)
    counts = np.array([len(answers) for answers in videos], np.float64)
    if len({*(rights / counts).tolist()}) == 1:
        return p, low, high
    rng = np.random.default_rng(seed)
    shares = []
    at_once = max(1, 1_000_000 // len(videos))  # that memory stays small
    for begin in range(0, draws, at_once):
        drawn = rng.integers(0, len(videos), (min(at_once, draws - begin), len(videos)))
        shares.append(rights[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(shares), [2.5, 97.5]).tolist()
    return p, min(low, p), max(high, p)
