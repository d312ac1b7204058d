"""Stage 2: near-equal choices of frames become one (paper, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvllm_adapters.context import in_float32
from bvllm_adapters.features import Selection


class TemporalMerger(nn.Module):
    """Temporal frame token merging by greedy leader clustering (eq. 2 to 5).

    Choices are visited in time order. Each that is not yet taken leads a cluster of all not yet
    taken whose cosine with it is at least gamma; the cluster becomes its mean. A merged choice is
    not compared again, so nothing chains and every choice ends in exactly one cluster. As frames
    are mixed linearly, averaging the rows of S averages the frames themselves.

    Args:
        threshold: gamma, a cosine in (0, 1]. With one-hot choices every gamma does the same:
            equal choices become one.
    """

    def __init__(self, threshold: float = 0.75) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, selection: Selection) -> Selection:
        """(K, T) choices -> (M, T), M <= K, in time order; sizes say how many each holds."""
        # In float32 under autocast too: what is merged must keep its weight.
        with in_float32(selection.size):
            merged = self.merge(selection.in_time_order())
        merged.query_scores = selection.query_scores
        return merged

    def merge(self, selection: Selection) -> Selection:
        """As forward(), of choices in time order."""
        if selection.is_whole:  # a cosine of 1 or of 0: equal frames become one
            frame, of = selection.frame.unique(return_inverse=True)
            size = selection.size.new_zeros(len(frame)).index_add(0, of, selection.size)
            return Selection.whole(
                frame, selection.num_frames, size, scores=selection.scores, note=selection.note
            )
        members = leader_clusters(selection.weights.detach(), self.threshold)
        size = members @ selection.size
        # A choice that already holds several counts as often.
        share = members * selection.size / size[:, None]
        support = selection.support
        if support is not None:
            support = (members @ support.float()) > 0
        return Selection(share @ selection.weights, size, support).in_time_order()

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"


def leader_clusters(rows: Tensor, threshold: float) -> Tensor:
    """(K, T) rows -> (M, K) float32 of 0 and 1: who belongs to which leader, leaders in order."""
    with in_float32(rows):
        unit = F.normalize(rows.float(), dim=1)
        # Rounding must not part a row from its own copy when the threshold is 1.
        alike = ((unit @ unit.T) >= threshold - 1e-6).cpu()
    free = torch.ones(len(rows), dtype=torch.bool)
    clusters = []
    for leader in range(len(rows)):
        if free[leader]:
            cluster = alike[leader] & free
            cluster[leader] = True
            free &= ~cluster
            clusters.append(cluster)
    return torch.stack(clusters).to(rows.device, torch.float32)
