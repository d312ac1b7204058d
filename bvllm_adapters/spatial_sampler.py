"""Stage 3: a few tokens of each chosen frame, led by the question (paper, section 3.4)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.context import attention_maps
from bvllm_adapters.qformer import QFormer, repeated
from bvllm_adapters.question import pad


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


def sample_frames(
    sampler: Any, frames: Sequence[Tensor], texts: Sequence[Tensor], *, prepared: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    """(M, P, C) frames of each video and its (L,) question -> (M, R, H) tokens of each and, inside
    of `looking`, (M, R, P) where they looked, the mean over layers; None: it was not noted.

    Args:
        prepared: whether the sampler's `prepare` has seen the frames.
    """
    how: dict[str, Any] = {"prepared": True} if prepared else {}
    sampled: dict[int, Tensor] = {}
    looked: dict[int, Tensor] = {}
    for shape in dict.fromkeys(video.shape[1:] for video in frames):  # of unlike pictures
        of = [i for i, video in enumerate(frames) if video.shape[1:] == shape]
        counts = [len(frames[i]) for i in of]
        asked = [texts[i] for i in of]
        if knows_counts(sampler.forward):  # a question is read once for all frames of a video
            how["counts"] = counts
        else:
            asked = [text for text, n in zip(asked, counts, strict=True) for _ in range(n)]
        with attention_maps() as maps:
            made = sampler(torch.cat([frames[i] for i in of]), *pad(asked), **how)
        sampled.update(zip(of, made.split(counts), strict=True))
        wanted = (*made.shape[:2], shape[0])
        maps = [each for each in maps if each.shape == wanted]  # a sampler of one's own may do more
        if maps:
            looked.update(zip(of, torch.stack(maps).mean(dim=0).split(counts), strict=True))
    return [sampled[i] for i in range(len(frames))], [looked.get(i) for i in range(len(frames))]
