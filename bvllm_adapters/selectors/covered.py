"""Covered MMR: relevance less redundancy, greedily, with picks that leave no bin of time empty.

The maths of all selectors that score frames. Axes: T frames, C feature width, K picks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bvllm_adapters.context import in_float32
from bvllm_adapters.features import first_max

_ROUNDING = 1e-6  # of the features' own size: what is less is rounding, and no direction


def covered_mmr(
    features: Tensor,
    relevance: Tensor,
    seconds: Tensor,
    num_frames: int,
    *,
    diversity: float = 0.5,
    coverage: float = 0.5,
) -> Tensor:
    """Frames of high relevance that differ from one another and are spread over the time.

    Each pick is the frame of the largest `(1 - diversity) r_t - diversity max_j c_t . c_j` over
    those picked before, where c are centred features of unit length; of equals the earliest. The
    first is the most relevant or, where all are equally so, the most typical. Of floor(coverage K)
    equal bins of time none is left without a pick if it has a frame: once the picks left are no
    more than the bins without one, they go there. With equal relevance this is k-center.

    O(K T C) time, no T x T matrix, in float32 whatever the dtype or autocast.

    Args:
        features: (T, C). relevance: (T,) from 0 to 1, as of `min_max`. seconds: (T,) times.
        num_frames: K, 1 or more.
        diversity: from 0, relevance alone, to 1, differences alone.
        coverage: from 0, no care for time, to 1, a frame of each of K bins.

    Returns:
        (min(K, T),) int64 different frames in time order.
    """
    count = len(features)
    if count <= num_frames:
        return torch.arange(count, device=features.device)
    with in_float32(features), torch.no_grad():
        unit = centred(features)
        relevance = relevance.to(unit)
        bins = time_bins(seconds, int(coverage * num_frames + 1e-9)).to(unit.device)
        empty = torch.zeros(int(bins.max()) + 1, dtype=torch.bool, device=unit.device)
        if coverage > 0:
            empty[bins] = True  # bins of time in which there is no frame cannot be filled
        free = torch.ones(count, dtype=torch.bool, device=unit.device)
        nearest = unit.new_full((count,), -2.0)
        flat = relevance.amax() == relevance.amin()
        gain = torch.where(flat, unit @ unit.mean(dim=0), relevance)
        picks = []
        for left in range(num_frames, 0, -1):
            must_fill = empty.sum() >= left
            allowed = free & (empty[bins] | ~must_fill)
            pick = first_max(gain.masked_fill(~allowed, -torch.inf)[None])
            picks.append(pick)
            free[pick] = False
            empty[bins[pick]] = False
            nearest = torch.maximum(nearest, unit @ unit[pick].squeeze(0))
            gain = (1 - diversity) * relevance - diversity * nearest
        return torch.cat(picks).sort().values


def centred(features: Tensor) -> Tensor:
    """(T, C) -> (T, C) float32: what sets each frame apart from their mean, of unit length.

    Features of one video lie close together, and all their cosines near 1; what is left of them
    around their mean tells frames apart. A frame that is the mean stays 0.
    """
    features = features.float()
    features = features / features.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    apart = features - features.mean(dim=0)
    length = apart.norm(dim=1, keepdim=True)
    size = features.norm(dim=1).amax()
    return torch.where(length > _ROUNDING * size, F.normalize(apart, dim=1), 0.0)


def time_bins(seconds: Tensor, bins: int) -> Tensor:
    """(T,) times -> (T,) int64 on the CPU: which of so many equal bins of time each frame is in.

    The last frame lasts as long as frames do on average, so that T frames at even times fill each
    of B bins with T / B of them, rounded up or down.
    """
    seconds = seconds.detach().cpu().double()
    count = len(seconds)
    passed = seconds - seconds[0]
    if passed[-1] > 0:
        place = passed / passed[-1] * (count - 1)
    else:  # no times to go by
        place = torch.arange(count, dtype=torch.float64)
    # Rounding must not put a frame at the edge of two bins into the one before.
    found = (place * max(bins, 1) / count + 1e-9).floor().long()
    return found.clamp_max(max(bins, 1) - 1)
