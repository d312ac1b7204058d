"""Stage 3: a few tokens of each chosen frame, led by the question (paper, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bvllm_adapters.qformer import QFormer


class SpatialSampler(nn.Module):
    """Spatial visual token sampling: R learned queries read the question and a frame's patches.

    Axes: F frames (of any number of videos), P patches, R tokens per frame, C vision width,
    H Q-Former width, L question tokens.

    Args:
        qformer: width H, reading visual tokens of width C.
        tokens_per_frame: R.
    """

    def __init__(self, qformer: QFormer, *, tokens_per_frame: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(qformer.visual_width)
        self.queries = nn.Parameter(torch.empty(tokens_per_frame, qformer.width).normal_(std=0.02))
        self.qformer = qformer

    def prepare(self, patches: Tensor) -> Tensor:
        """(..., P, C) patches as they are read; soft choices are mixed of such."""
        normed: Tensor = self.norm(patches)
        return normed

    def forward(
        self,
        frames: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None = None,
        *,
        prepared: bool = False,
    ) -> Tensor:
        """(F, P, C) frames, (F, L) questions and their mask -> (F, R, H) tokens.

        Args:
            prepared: whether frames are of patches that went through `prepare` already.
        """
        if not prepared:
            frames = self.prepare(frames)
        return self.read(frames, text_ids, text_mask)

    def read(self, frames: Tensor, text_ids: Tensor, text_mask: Tensor | None) -> Tensor:
        """(F, P, C) prepared frames -> (F, R, H): what the queries read of each."""
        queries = self.queries.expand(len(frames), -1, -1)
        tokens: Tensor = self.qformer(queries, frames, text_ids, text_mask)
        return tokens
