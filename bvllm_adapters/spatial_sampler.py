"""Stage 3: a few tokens of each chosen frame, led by the question (paper, section 3.4)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.qformer import QFormer, repeated


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
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """(F, P, C) frames, (F, L) questions and their mask -> (F, R, H) tokens.

        Args:
            prepared: whether frames are of patches that went through `prepare` already.
            counts: text_ids and text_mask have a row for each question; this says how many frames,
                one behind the other, each is asked of. What only the question decides is then
                computed once for all of them. None: a row for each frame.
        """
        if not prepared:
            frames = self.prepare(frames)
        if counts is None:
            return self.read(frames, text_ids, text_mask)
        if knows_counts(self.read):
            return self.read(frames, text_ids, text_mask, counts)
        # A subclass whose reading knows of a question for each frame.
        text_mask = None if text_mask is None else repeated(text_mask, counts)
        return self.read(frames, repeated(text_ids, counts), text_mask)

    def read(
        self,
        frames: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """(F, P, C) prepared frames -> (F, R, H): what the queries read of each."""
        rows = len(frames) if counts is None else len(counts)
        queries = self.queries.expand(rows, -1, -1)
        tokens: Tensor = self.qformer(queries, frames, text_ids, text_mask, counts=counts)
        return tokens


def knows_counts(reads: Callable[..., Any]) -> bool:
    """Whether it names `counts`; what takes any keyword need not know what this one means."""
    return "counts" in inspect.signature(reads).parameters
