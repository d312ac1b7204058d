"""transformers' own video models as a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_transformers.arguments import check_seam
from bvllm_transformers.calls import Budgeted
from bvllm_transformers.families import family_of


class TransformersHost:
    """See `bvllm_adapters.hosts.Host`."""

    api = 2
    overrides = Budgeted

    def load(self, folder: Path, *, dtype: torch.dtype) -> nn.Module:
        raise NotImplementedError

    def processor(self, folder: Path) -> Any:
        raise NotImplementedError

    def config(self, model: Any) -> BalancedTokenizerConfig:
        """Without training: frames by coverage, the model's own tokens."""
        check_seam(model)
        family_of(model)
        width = model.get_input_embeddings().embedding_dim
        return BalancedTokenizerConfig(
            num_frames=None,
            tokens_per_frame=None,
            vision_width=width,
            llm_width=width,
            frame_feature="mean",
            selector="coverage",
            sampler="none",
            projection="none",
        )

    def tower(self, model: Any) -> nn.Module:
        raise NotImplementedError

    def pixels(self, processor: Any, frames: Any, *, is_image: bool = False) -> Tensor:
        raise NotImplementedError

    def look(self, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def answers(
        self, model: Any, processor: Any, questions: Any, tokens: Any, **generate: Any
    ) -> list[str]:
        raise NotImplementedError


HOST = TransformersHost()
