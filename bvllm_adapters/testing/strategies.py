"""Hypothesis strategies: videos as features, questions, budgets, and tokenizers to try them on.

Tensors are drawn by seed, so that a failing example is small to print and exact to repeat.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.features import FrameFeatures

MOST_FRAMES = 400
DTYPES = (torch.float32, torch.bfloat16)


def budgets(most: int = 2000) -> st.SearchStrategy[int]:
    """Token budgets from 1 up; small ones, where merging is hardest, come up often."""
    return st.one_of(st.integers(1, 40), st.integers(1, most))


def questions() -> st.SearchStrategy[str]:
    """Questions of any script and length, the empty one included."""
    return st.one_of(
        st.sampled_from(["", "What is taped to the wall?", "why " * 300]), st.text(max_size=40)
    )


@st.composite
def frame_features(
    draw: st.DrawFn,
    *,
    width: int,
    patches: int = 4,
    min_frames: int = 1,
    max_frames: int = MOST_FRAMES,
    dtype: torch.dtype = torch.float32,
) -> FrameFeatures:
    """Features of a video of `min_frames` to `max_frames` frames.

    Some videos are still scenes: runs of frames that are equal bit for bit.
    """
    frames = draw(
        st.one_of(
            st.integers(min_frames, min(max_frames, min_frames + 9)),
            st.integers(min_frames, max_frames),
        )
    )
    scenes = draw(st.one_of(st.just(frames), st.integers(1, frames)))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scene = torch.arange(frames) * scenes // frames
    return FrameFeatures(
        cls=torch.randn(scenes, width, generator=rng)[scene].to(dtype),
        patches=torch.randn(scenes, patches, width, generator=rng)[scene].to(dtype),
        seconds=torch.arange(frames, dtype=torch.float64),
    )


@st.composite
def tokenizer_configs(draw: st.DrawFn, /, **fixed: Any) -> BalancedTokenizerConfig:
    """Small configs; `fixed` settings are taken as they are."""
    least = fixed.get("min_frames", 1)
    settings: dict[str, Any] = {
        "num_frames": draw(st.integers(1, 12)),
        "tokens_per_frame": draw(st.integers(1, 9)),
        "max_tokens": draw(st.none() | budgets(120)),
        "frame_count": draw(st.sampled_from(["fixed", "gap", "mass"])),
        "max_frames": draw(st.integers(least, least + 19)),
        "merge_threshold": draw(st.sampled_from([0.5, 0.75, 1.0])),
        "time_encoding": draw(st.booleans()),
        "normalize_cls": draw(st.booleans()),
        "projection": draw(st.sampled_from(["mlp", "linear"])),
        "vision_width": 16,
        "llm_width": 12,
        "qformer_width": 8,
        "qformer_layers": 2,
        "qformer_heads": 2,
        "qformer_ffn_width": 16,
    }
    return BalancedTokenizerConfig(**(settings | fixed))


@st.composite
def tokenizers(
    draw: st.DrawFn, /, *, dtype: torch.dtype = torch.float32, **fixed: Any
) -> BalancedTokenizer:
    """Small tokenizers with random weights, in evaluation mode."""
    config = draw(tokenizer_configs(**fixed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 2**31)))
        tokenizer = BalancedTokenizer(config)
        # Weights as after training: BERT's initialisation makes all queries nearly alike.
        for parameter in tokenizer.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return tokenizer.to(dtype).eval()
