"""Other ways from relevance to frames, to compare covered MMR with.

Top-k and the best of each bin of time are covered MMR with other settings, see `names`. Axes: T
frames, C feature width, K frames wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_transform(
    features: Tensor, relevance: Tensor, seconds: Tensor, num_frames: int, *, power: float = 3.0
) -> Tensor:
    """Inverse transform sampling of relevance ** power (BOLT), made to give different frames.

    K levels, evenly from 1 / 2K to 1 - 1 / 2K of the sum of all weights, each take the frame at
    which the running sum reaches them. Where several fall on one frame, that frame is taken once,
    and the others take the next frames that are free. Equal relevance gives even frames.

    Returns:
        (min(K, T),) int64 different frames in time order.
    """
    count, device = len(relevance), relevance.device
    wanted = min(num_frames, count)
    weights = relevance.detach().cpu().double() ** power
    if not bool(weights.any()):
        weights = torch.ones_like(weights)
    sums = weights.cumsum(dim=0)
    levels = (torch.arange(wanted, dtype=torch.float64) + 0.5) / wanted * sums[-1]
    found = torch.searchsorted(sums, levels).clamp_max(count - 1)
    # In order, each at least one after the one before; then, as many may have been pushed over
    # the end, each at least one before the one after.
    steps = torch.arange(wanted)
    found = torch.cummax(found - steps, dim=0).values + steps
    last = count - wanted + steps
    return torch.minimum(found, last).to(device)


def evenly(count: int, num_frames: int) -> Tensor:
    """(min(K, T),) int64: the middle frame of each of K equal parts of T = `count` frames."""
    wanted = min(num_frames, count)
    return (2 * torch.arange(wanted) + 1) * count // (2 * wanted)
