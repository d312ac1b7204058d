"""Stage 1: the question chooses frames (paper, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bvllm_adapters.config import Evaluation
from bvllm_adapters.context import in_float32
from bvllm_adapters.features import Selection
from bvllm_adapters.frame_count import FrameCount
from bvllm_adapters.qformer import QFormer


class FrameSelector(nn.Module):
    """Text-conditioned adaptive frame selection: S = GumbelSoftmax(Q V_cls^T, tau) (eq. 1).

    L* learned queries read the question and one feature of each frame; what they become is
    compared with those features. In training the choice is soft and noisy (Gumbel-softmax), in
    evaluation each query takes its best frame, without noise, unless `evaluation` or `frame_count`
    says otherwise.

    Axes: T frames, K = L* queries, C vision width, H Q-Former width.

    Args:
        qformer: width H, reading visual tokens of width C.
        num_frames: K, frames at most without `frame_count`.
        temperature, straight_through, evaluation, normalize_cls, time_encoding: see
            `BalancedTokenizerConfig`. support: its `selection_support`.
        frame_count: decides in hard evaluation how many frames are chosen; None: K queries choose.
    """

    def __init__(
        self,
        qformer: QFormer,
        *,
        num_frames: int,
        temperature: float = 0.1,
        straight_through: bool = False,
        evaluation: Evaluation = "hard",
        normalize_cls: bool = True,
        time_encoding: bool = False,
        support: int | None = None,
        frame_count: FrameCount | None = None,
    ) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.temperature = temperature
        self.straight_through = straight_through
        self.evaluation = evaluation
        self.time_encoding = time_encoding
        self.support = support
        self.frame_count = frame_count
        self.queries = nn.Parameter(torch.empty(num_frames, qformer.width).normal_(std=0.02))
        self.norm = nn.LayerNorm(qformer.visual_width) if normalize_cls else nn.Identity()
        self.qformer = qformer
        self.projection = nn.Linear(qformer.width, qformer.visual_width)

    def forward(
        self,
        cls: Tensor,
        text_ids: Tensor,
        *,
        seconds: Tensor | None = None,
        generator: torch.Generator | None = None,
        max_frames: int | None = None,
    ) -> Selection:
        """Choose frames of one video.

        Args:
            cls: (T, C) a feature of each frame. text_ids: (L,) the question's ids, L may be 0.
            seconds: (T,) their times; needed with `time_encoding`.
            generator: where training's noise comes from; None: torch's global generator.
            max_frames: limit of `frame_count` in place of its own.

        Returns:
            Selection with weights (K, T), rows summing to 1, in time order; with `frame_count`
            (n, T), one-hot rows of n different frames. Its `query_scores` are the queries' own.
        """
        scores = self.scores(cls, text_ids, seconds=seconds)
        if self.frame_count is not None and self.hard:
            chosen = self.frame_count.select(scores, most=max_frames)
        else:
            support = self.support_of(scores)
            chosen = Selection.of(self.choose(scores, generator, support), support)
        chosen.query_scores = scores.detach()
        return chosen

    @property
    def hard(self) -> bool:
        """Whether frames are chosen whole and without noise, as in evaluation by default."""
        return not self.training and self.evaluation == "hard"

    def scores(self, cls: Tensor, text_ids: Tensor, *, seconds: Tensor | None = None) -> Tensor:
        """(K, T) float32: (W h) . cls / sqrt(C), h the K queries after reading."""
        if self.time_encoding:
            if seconds is None:
                raise ValueError("seconds: got None, wanted (T,) times, as time_encoding is on")
            cls = cls + sinusoidal(seconds.to(cls.device), cls.shape[1]).to(cls.dtype)
        return self.batch_scores(cls[None], text_ids[None])[0]

    def batch_scores(
        self, cls: Tensor, text_ids: Tensor, text_mask: Tensor | None = None
    ) -> Tensor:
        """(B, K, T) float32: `scores` of B videos of one length, whose times are in `cls`.

        Args:
            cls: (B, T, C) frame features of B videos of one length.
            text_ids: (B, L) questions. text_mask: (B, L), False at padding.
        """
        with in_float32(cls):  # all that the scores are made of: the queries that read, too
            cls = self.norm(cls.to(self.queries.dtype))
            read = self.qformer(self.queries.expand(len(cls), -1, -1), cls, text_ids, text_mask)
            queries: Tensor = self.projection(read)
            return queries.float() @ cls.float().transpose(1, 2) / math.sqrt(cls.shape[2])

    def support_of(self, scores: Tensor) -> Tensor | None:
        """(K, T) scores -> (K, T) bool, which frames soft choices may mix; None: all.

        The best by their scores without noise: fewer than the paper mixes, so that patches of the
        others, whose weights hardly matter, are not needed in training.
        """
        if self.support is None or self.hard or self.support >= scores.shape[1]:
            return None
        best = scores.topk(self.support, dim=1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)

    def choose(
        self,
        scores: Tensor,
        generator: torch.Generator | None = None,
        support: Tensor | None = None,
    ) -> Tensor:
        """(K, T) scores -> (K, T) weights, as training or evaluation asks for.

        Args:
            support: (K, T) bool, frames that may get weight; None: all.
        """
        if support is not None:
            scores = scores.masked_fill(~support, -torch.inf)
        if self.training or self.evaluation == "sample":
            soft = torch.softmax(
                (scores + gumbel_noise(scores, generator)) / self.temperature, dim=1
            )
            if not (self.training and self.straight_through):
                return soft
            # One-hot forwards; backwards the hard part is a constant.
            return one_hot_argmax(soft) + soft - soft.detach()
        if self.evaluation == "soft":
            return torch.softmax(scores / self.temperature, dim=1)
        return one_hot_argmax(scores)


def gumbel_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """-log(-log u) for uniform u, in float32, finite for every u that can be drawn."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    return -torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))


def one_hot_argmax(scores: Tensor) -> Tensor:
    """(K, T) -> (K, T) with a 1 at each row's maximum, at the first of equals."""
    largest = scores == scores.amax(dim=1, keepdim=True)
    return (largest & (largest.cumsum(dim=1) == 1)).to(torch.float32)


def sinusoidal(seconds: Tensor, width: int) -> Tensor:
    """(T,) seconds -> (T, width) sines and cosines of wavelengths 2 pi s to 20,000 pi s."""
    exponents = torch.linspace(0, 1, width // 2, dtype=torch.float32, device=seconds.device)
    frequencies = 1e-4**exponents
    angles = seconds.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
