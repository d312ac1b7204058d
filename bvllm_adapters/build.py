"""The stages that a config asks for, in its sizes."""

from __future__ import annotations

from typing import Any

from torch import nn

from bvllm_adapters.budget_merger import BudgetMerger
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.frame_count import FrameCount
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.qformer import POSITIONS, QFormer
from bvllm_adapters.scout import Scout
from bvllm_adapters.selectors.saved import built_selector
from bvllm_adapters.spatial_sampler import SpatialSampler
from bvllm_adapters.temporal_merger import TemporalMerger


class _FromConfig:
    """The default of a stage: one that is built from the config."""

    def __repr__(self) -> str:
        return "<built from config>"


FROM_CONFIG: Any = _FromConfig()


def build_qformer(
    config: BalancedTokenizerConfig, *, visual_width: int | None = None, positions: int = POSITIONS
) -> QFormer:
    return QFormer(
        width=config.qformer_width,
        heads=config.qformer_heads,
        layers=config.qformer_layers,
        ffn_width=config.qformer_ffn_width or 4 * config.qformer_width,
        visual_width=visual_width or config.vision_width,
        cross_attention_frequency=config.cross_attention_frequency,
        vocab_size=config.vocab_size,
        positions=positions,
    )


def build_scout(config: BalancedTokenizerConfig) -> Scout | None:
    return None if config.scout is None else Scout(config.scout)


def build_frame_count(config: BalancedTokenizerConfig) -> FrameCount | None:
    if config.frame_count == "fixed":
        return None
    return FrameCount(
        by=config.frame_count,
        least=config.min_frames,
        most=config.most_frames,
        mass=config.frame_mass,
    )


def build_selector(config: BalancedTokenizerConfig) -> nn.Module:
    if config.selector != "learned":
        return built_selector(config.selector, config.selector_settings)
    sizes: dict[str, Any] = {"num_frames": config.num_frames}
    return FrameSelector(
        build_qformer(config, visual_width=config.selection_width),
        **sizes,
        temperature=config.temperature,
        straight_through=config.straight_through,
        evaluation=config.evaluation,
        normalize_cls=config.normalize_cls,
        time_encoding=config.time_encoding,
        support=config.selection_support,
        frame_count=build_frame_count(config),
    )


def build_temporal_merger(config: BalancedTokenizerConfig) -> TemporalMerger | None:
    """None for selectors whose choices are different whole frames anyway."""
    return TemporalMerger(config.merge_threshold) if config.selector == "learned" else None


def build_sampler(config: BalancedTokenizerConfig) -> SpatialSampler | None:
    if config.sampler == "none":
        return None
    sizes: dict[str, Any] = {"tokens_per_frame": config.tokens_per_frame}
    return SpatialSampler(build_qformer(config), **sizes)


def build_budget_merger(config: BalancedTokenizerConfig) -> BudgetMerger:
    """A host's own tokens are compared without the further levels that may go along with them."""
    own = config.sampler == config.projection == "none"
    return BudgetMerger(similarity_width=config.llm_width if own else None)


def build_projection(config: BalancedTokenizerConfig, width: int) -> nn.Sequential | None:
    if config.projection == "none":
        return None
    if config.projection == "mlp":
        return nn.Sequential(
            nn.Linear(width, config.llm_width),
            nn.GELU(),
            nn.Linear(config.llm_width, config.llm_width),
        )
    return nn.Sequential(
        nn.Linear(width, config.vision_width), nn.Linear(config.vision_width, config.llm_width)
    )
