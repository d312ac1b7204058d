"""The learned stages in the sizes of a config."""

from __future__ import annotations

from torch import nn

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.qformer import POSITIONS, QFormer
from bvllm_adapters.spatial_sampler import SpatialSampler


def build_qformer(config: BalancedTokenizerConfig, *, positions: int = POSITIONS) -> QFormer:
    return QFormer(
        width=config.qformer_width,
        heads=config.qformer_heads,
        layers=config.qformer_layers,
        ffn_width=config.qformer_ffn_width or 4 * config.qformer_width,
        visual_width=config.vision_width,
        cross_attention_frequency=config.cross_attention_frequency,
        vocab_size=config.vocab_size,
        positions=positions,
    )


def build_selector(config: BalancedTokenizerConfig) -> FrameSelector:
    return FrameSelector(
        build_qformer(config),
        num_frames=config.num_frames,
        temperature=config.temperature,
        straight_through=config.straight_through,
        evaluation=config.evaluation,
        normalize_cls=config.normalize_cls,
        time_encoding=config.time_encoding,
    )


def build_sampler(config: BalancedTokenizerConfig) -> SpatialSampler:
    return SpatialSampler(build_qformer(config), tokens_per_frame=config.tokens_per_frame)


def build_projection(config: BalancedTokenizerConfig, width: int) -> nn.Sequential:
    if config.projection == "mlp":
        return nn.Sequential(
            nn.Linear(width, config.llm_width),
            nn.GELU(),
            nn.Linear(config.llm_width, config.llm_width),
        )
    return nn.Sequential(
        nn.Linear(width, config.vision_width), nn.Linear(config.vision_width, config.llm_width)
    )
