"""The frozen vision tower: frames -> tokens of each frame, EVA-CLIP by timm or CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.eva import build_eva
from bvllm_adapters.weights.towers import check_pixels, hidden_state
from bvllm_llama_vid.configuration import EvaSizes, clip_config, eva_sizes, is_eva

CHUNK = 32  # frames that a tower sees at a time, so that memory does not grow with the video


class VisionTower(nn.Module):
    """Upstream's tower; its weights lie under `vision_tower.` as published.

    Axes: T frames, S image size in pixels, P patches, C width.
    """

    is_loaded = True  # upstream's scripts ask, and would call load_model()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.select_feature = getattr(config, "mm_vision_select_feature", "patch")
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(
                f"mm_vision_select_feature: got {self.select_feature!r}, "
                "wanted 'patch' or 'cls_patch'"
            )
        sizes: Any
        self.vision_tower: nn.Module
        if is_eva(config):
            sizes = eva_sizes(config)
            self.vision_tower = build_eva_tower(sizes)
            self.keeps_cls = True  # the context attention reads it, and drops it then
        else:
            sizes = clip_config(config)
            layer = getattr(config, "mm_vision_select_layer", -2)
            self.vision_tower = ClipEncoder(sizes, layer)
            self.select_layer = layer
            self.keeps_cls = self.select_feature == "cls_patch"
        self.hidden_size: int = sizes.hidden_size
        self.image_size: int = sizes.image_size
        self.patch_size: int = sizes.patch_size
        self.num_patches: int = (sizes.image_size // sizes.patch_size) ** 2
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> VisionTower:
        """Modifications: stays in evaluation mode."""
        return super().train(False)

    def load_model(self) -> None:
        """Upstream's; there is nothing left to load."""

    def forward(self, images: Tensor) -> Tensor:
        """(T, 3, S, S) pixels -> (T, P or 1 + P, C): EVA's with CLS, CLIP's as selected."""
        tokens = self.tokens(images)
        return tokens if self.keeps_cls else tokens[:, 1:]

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """(T, 3, S, S) pixels -> (T, 1 + P, C), CLS first, in the dtype of the pixels.

        Smaller ones than usual, which a scout may give, are seen with position embeddings between
        the usual ones.
        """
        check_pixels("images", images, self.image_size, self.patch_size)
        pixels = images.to(self.device, self.dtype)
        return torch.cat([self.vision_tower(part) for part in pixels.split(CHUNK)]).to(images.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return device_of(self)


class ClipEncoder(nn.Module):
    """A CLIP under its published names, up to the hidden states that are selected."""

    def __init__(self, config: CLIPVisionConfig, select_layer: int) -> None:
        super().__init__()
        clip: Any = CLIPVisionModel(config)
        # The published `vision_model.` is a level that transformers has lately done without.
        self.vision_model: Any = getattr(clip, "vision_model", clip)
        states = config.num_hidden_layers + 1
        if not -states <= select_layer < states:
            raise ValueError(
                f"mm_vision_select_layer: got {select_layer}, wanted one of {states} hidden states"
            )
        self.depth = select_layer % states

    def forward(self, pixels: Tensor) -> Tensor:
        """(T, 3, S, S) -> (T, 1 + P, C)."""
        return hidden_state(self.vision_model, pixels, self.depth)


def build_eva_tower(sizes: EvaSizes) -> nn.Module:
    eva: Any = build_eva(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.hidden_size,
        depth=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        ffn_width=sizes.intermediate_size,
    )
    for block in eva.blocks:
        # Attention adds up in upstream's order: EVA's features are large, and the softmax of the
        # context attention turns a difference in their last digit into one in a token's fourth.
        block.attn.fused_attn = False
    built: nn.Module = eva
    return built
