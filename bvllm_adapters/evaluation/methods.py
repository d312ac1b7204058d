"""What a balanced tokenizer is compared with: other ways to spend the same visual tokens.

Each is a BalancedTokenizer of the same tower, language model and budget with another stage in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.build import build_qformer
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.features import Selection
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.qformer import QFormer
from bvllm_adapters.spatial_sampler import SpatialSampler

METHODS = ("bvllm", "uniform", "random", "two_tokens", "no_question")
TOKENS_PER_SPREAD_FRAME = 2  # more frames with fewer tokens serve a method that cannot choose


class UniformFrames(nn.Module):
    """K frames, each from the middle of one K-th of the video, whatever is asked."""

    def __init__(self, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames

    def forward(
        self,
        cls: Tensor,
        text_ids: Tensor,
        *,
        seconds: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """(T, C) frame features -> Selection of min(K, T) frames."""
        chosen = min(self.num_frames, len(cls))
        middles = (
            (torch.arange(chosen, dtype=torch.float32, device=cls.device) + 0.5) * len(cls) / chosen
        )
        return Selection.whole(middles.long(), len(cls))


class RandomFrames(nn.Module):
    """K different frames drawn at random.

    In evaluation the draw depends on the frames' features alone, so that it can be repeated.
    """

    def __init__(self, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames

    def forward(
        self,
        cls: Tensor,
        text_ids: Tensor,
        *,
        seconds: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """(T, C) frame features -> Selection of min(K, T) frames."""
        if generator is None and not self.training:
            seed = int(cls.double().abs().sum().frexp().mantissa * 2**53)
            generator = torch.Generator(cls.device).manual_seed(seed)
        order = torch.randperm(len(cls), generator=generator, device=cls.device)
        return Selection.whole(order[: self.num_frames], len(cls))


class BlindFrameSelector(FrameSelector):
    """A frame selector that is never told the question."""

    def batch_scores(
        self, cls: Tensor, text_ids: Tensor, text_mask: Tensor | None = None
    ) -> Tensor:
        return super().batch_scores(cls, text_ids[:, :0])


class TwoTokenSampler(SpatialSampler):
    """LLaMA-VID's two tokens of a frame (Li et al., 2023, section 3.2): context and content.

    Context: what the question's queries attend to among the patches, averaged over the queries.
    Content: the mean of the patches. Axes as in `SpatialSampler`, R = 2.
    """

    def __init__(self, qformer: QFormer, *, num_queries: int) -> None:
        super().__init__(qformer, tokens_per_frame=num_queries)
        width = qformer.visual_width
        self.query = nn.Linear(qformer.width, width)
        self.context = nn.Linear(width, qformer.width)
        self.content = nn.Linear(width, qformer.width)

    def read(
        self,
        frames: Tensor,
        text_ids: Tensor,
        text_mask: Tensor | None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """(F, P, C) prepared frames -> (F, 2, H)."""
        scores = self.query(super().read(frames, text_ids, text_mask, counts)).float()
        scores = scores @ frames.float().transpose(1, 2)
        weights = (scores / frames.shape[2] ** 0.5).softmax(dim=2).to(frames.dtype)
        context = self.context((weights @ frames).mean(dim=1))
        return torch.stack([context, self.content(frames.mean(dim=1))], dim=1)


def build_method(method: str, config: BalancedTokenizerConfig) -> BalancedTokenizer:
    """A tokenizer that spends `config.max_tokens` in the way of one of `METHODS`.

    Args:
        config: of the B-VLLM it is compared with; max_tokens must be set.

    Raises:
        ValueError: an unknown method, no budget, or one too small for two tokens a frame.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, wanted one of {list(METHODS)}")
    if config.max_tokens is None or config.max_tokens < TOKENS_PER_SPREAD_FRAME:
        raise ValueError(
            f"max_tokens: got {config.max_tokens}, wanted at least {TOKENS_PER_SPREAD_FRAME}, "
            "the budget that all methods share"
        )
    if method == "bvllm":
        return BalancedTokenizer(config)
    if method == "no_question":
        wordless = replace(config, vocab_size=1, vocabulary=None)
        selector = BlindFrameSelector(
            build_qformer(wordless, positions=1),
            num_frames=config.num_frames or 1,
            temperature=config.temperature,
            straight_through=config.straight_through,
            evaluation=config.evaluation,
            normalize_cls=config.normalize_cls,
        )
        return BalancedTokenizer(config, frame_selector=selector)
    count = config.max_tokens // TOKENS_PER_SPREAD_FRAME
    spread = replace(
        config,
        num_frames=count,
        tokens_per_frame=TOKENS_PER_SPREAD_FRAME,
    )
    if method == "random":
        return BalancedTokenizer(spread, frame_selector=RandomFrames(count))
    uniform = UniformFrames(count)
    if method == "uniform":
        return BalancedTokenizer(spread, frame_selector=uniform)
    sampler = TwoTokenSampler(build_qformer(config), num_queries=config.tokens_per_frame or 1)
    return BalancedTokenizer(spread, frame_selector=uniform, spatial_sampler=sampler)
