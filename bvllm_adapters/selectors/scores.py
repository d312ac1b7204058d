"""Numbers for frames: local novelty, smoothing in seconds, the range from 0 to 1.

Pure functions, in float64 on the CPU: they are of T numbers or little more, and running sums need
the digits. Axes: T frames, C feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 1e-6  # of the values' own size: differences that float32 features cannot have
_COLUMNS = 64  # of the features at once: novelty takes T x 64 numbers beside them


def min_max(scores: Tensor) -> Tensor:
    """(T,) -> (T,) float32 on the CPU from 0 to 1; 0 where all are equal but for rounding.

    Raises:
        ValueError: for NaN or inf.
    """
    scores = scores.detach().cpu().double()
    if not bool(scores.isfinite().all()):
        raise ValueError("scores: got NaN or inf, wanted finite numbers")
    least, most = scores.amin(), scores.amax()
    if most - least <= _ROUNDING * scores.abs().amax():
        return torch.zeros_like(scores, dtype=torch.float32)
    return ((scores - least) / (most - least)).float()


def smoothed(scores: Tensor, seconds: Tensor, width: float) -> Tensor:
    """(T,) -> (T,) float64 on the CPU: the mean over `width` seconds around each frame.

    What lasts wins over what flares up in one frame. Of uneven times the window is in seconds too.
    """
    scores, seconds = scores.detach().cpu().double(), seconds.detach().cpu().double()
    least = scores.amin()  # sums of equal scores must stay equal
    first, end = window(seconds, width / 2)
    sums = running_sum((scores - least)[:, None])[:, 0]
    return (sums[end] - sums[first]) / (end - first) + least


def local_novelty(features: Tensor, seconds: Tensor, width: float) -> Tensor:
    """(T, C) -> (T,) float64 on the CPU: how far each frame is from the mean of those around it.

    Args:
        width: how many seconds before and after a frame are around it. It itself is left out; where
            nothing is left, it is not new.
    """
    seconds = seconds.detach().cpu().double()
    first, end = window(seconds, width)
    others = (end - first - 1).double()
    squares = torch.zeros(len(features), dtype=torch.float64)
    size = torch.zeros((), dtype=torch.float64)
    for columns in features.detach().split(_COLUMNS, dim=1):
        columns = columns.cpu().double()
        size = size + columns.square().sum(dim=1).amax()
        columns = columns - columns.mean(dim=0)
        sums = running_sum(columns)
        around = (sums[end] - sums[first] - columns) / others.clamp_min(1)[:, None]
        squares += (columns - around).square().sum(dim=1)
    novelty = squares.sqrt()
    return torch.where((others > 0) & (novelty > _ROUNDING * size.sqrt()), novelty, 0.0)


def window(seconds: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """(T,) times -> (T,) first and (T,) end: frames first to end - 1 are within `reach` seconds."""
    reach += 1e-6  # times of frames are rounded; one at the edge is inside, before and after alike
    return (
        torch.searchsorted(seconds, seconds - reach),
        torch.searchsorted(seconds, seconds + reach, right=True),
    )


def running_sum(values: Tensor) -> Tensor:
    """(T, n) -> (T + 1, n): the sum of the first t rows."""
    return torch.cat([values.new_zeros(1, values.shape[1]), values.cumsum(dim=0)])
