"""The frozen vision tower: CLIP or SigLIP, read at one of its inner layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionModel

from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.towers import has_cls, hidden_state
from bvllm_videollama2.configuration import TowerConfig, tower_config
from bvllm_videollama2.preprocessing import image_processor_for


class VisionTower(nn.Module):
    """Frames -> features of their patches; it never trains and keeps no graph.

    Its weights are `vision_tower.vision_model....` as published, whether transformers' own class
    has that level (before 5.1) or not.
    """

    def __init__(self, config: Any, encoder: nn.Module) -> None:
        super().__init__()
        self.select_layer = int(config.mm_vision_select_layer)
        self.select_feature = getattr(config, "mm_vision_select_feature", "patch")
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(
                f"mm_vision_select_feature: got {self.select_feature!r}, "
                "wanted 'patch' or 'cls_patch'"
            )
        depth = int(encoder.config.num_hidden_layers)  # type: ignore[arg-type, union-attr]
        if not -depth - 1 <= self.select_layer <= depth:
            raise ValueError(
                f"mm_vision_select_layer: got {self.select_layer}, "
                f"wanted -{depth + 1} to {depth} of a tower of {depth} layers"
            )
        self.vision_tower = encoder if hasattr(encoder, "vision_model") else _Level(encoder)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> VisionTower:
        """Modifications: stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) pixels -> (B, P, C), in the tower's dtype; with the CLS token first if
        select_feature is "cls_patch"."""
        tokens = hidden_state(self.vision_tower, images, self.select_layer)
        cut = self.select_feature == "patch" and has_cls(self.vision_tower)
        return tokens[:, 1:] if cut else tokens

    @property
    def config(self) -> TowerConfig:
        config: TowerConfig = self.vision_tower.vision_model.config  # type: ignore[assignment, union-attr]
        return config

    @property
    def image_processor(self) -> Any:
        """Of the tower's usual pixels."""
        return image_processor_for(self.config)

    @property
    def is_loaded(self) -> bool:
        return True

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return device_of(self)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)


class CLIPVisionTower(VisionTower):
    """(B, 3, S, S) -> (B, P, C); the inner model has a CLS token before the patches."""


class SiglipVisionTower(VisionTower):
    """(B, 3, S, S) -> (B, P, C); no CLS token."""


class _Level(nn.Module):
    """The level `vision_model` in the names of published weights."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.vision_model = encoder


def build_vision_tower(config: Any) -> VisionTower:
    """The tower that a model's config names, with weights that are still to be loaded."""
    sizes = tower_config(config)
    if isinstance(sizes, CLIPVisionConfig):
        return CLIPVisionTower(config, CLIPVisionModel(sizes))
    return SiglipVisionTower(config, SiglipVisionModel(sizes))
