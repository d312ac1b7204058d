"""The frozen vision tower: frames -> a feature of each frame, and of each of its patches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionModel
from transformers import initialization as init

from bvllm_adapters.config import FrameFeature
from bvllm_adapters.features import frame_and_patches
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.eva import build_eva
from bvllm_adapters.weights.image_models import timm_model
from bvllm_adapters.weights.towers import hidden_state
from bvllm_qwen2.configuration import (
    BvllmQwen2Config,
    EvaVisionConfig,
    TimmVisionConfig,
    VisionConfig,
    has_cls,
)


class VisionTower(nn.Module):
    """EVA-CLIP or another of timm's, or CLIP or SigLIP by transformers.

    It never trains and keeps no graph.

    Axes: T frames, S image size in pixels, P patches, C width.
    """

    def __init__(self, config: BvllmQwen2Config) -> None:
        super().__init__()
        self.encoder = build_encoder(config.vision_config)
        self.has_cls = has_cls(config.vision_config)
        self.select_layer = config.vision_select_layer
        self.chunk_size = config.vision_chunk_size
        self.freeze()

    def freeze(self) -> None:
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> VisionTower:
        """Modifications: stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, frame_feature: FrameFeature = "cls") -> tuple[Tensor, Tensor]:
        """(T, 3, S, S) pixels -> (T, C) frame features, (T, P, C) patches.

        Smaller pixels than usual, which a scout may give, are seen with position embeddings between
        the usual ones.

        Args:
            frame_feature: the CLS token, or the "mean" or "max" over the patches.

        Raises:
            ValueError: "cls" of a tower without CLS token.
        """
        pixels = pixels.to(device_of(self), next(self.parameters()).dtype)
        tokens = torch.cat([self._tokens(part) for part in pixels.split(self.chunk_size)])
        return frame_and_patches(tokens, has_cls=self.has_cls, frame_feature=frame_feature)

    def _tokens(self, pixels: Tensor) -> Tensor:
        if self.select_layer is None:
            tokens: Tensor = self.encoder.forward_features(pixels)  # type: ignore[operator]
        else:
            tokens = hidden_state(self.encoder, pixels, self.select_layer)
        return tokens


def build_encoder(config: VisionConfig) -> nn.Module:
    if isinstance(config, EvaVisionConfig):
        return build_eva_tower(config)
    if isinstance(config, TimmVisionConfig):
        return TimmTokens(config)
    return (
        CLIPVisionModel(config)
        if isinstance(config, CLIPVisionConfig)
        else SiglipVisionModel(config)
    )


class TimmTokens(nn.Module):
    """An image model of timm whose `forward_features` is pixels -> (T, 1 + P, C) tokens.

    Without CLS token (T, P, C). The places of a feature map count as patches.

    Raises:
        ValueError: the config's hidden_size, has_cls or earlier are not the model's.
    """

    def __init__(self, config: TimmVisionConfig) -> None:
        super().__init__()
        try:
            model: Any = timm_model(config.architecture, config.model_args)
        except ValueError as error:
            raise ValueError(f"vision_config.architecture, .model_args: {error}") from error
        self.prefix = int(getattr(model, "num_prefix_tokens", hasattr(model, "cls_token")))
        self.earlier = config.earlier
        channels = [] if hasattr(model, "num_prefix_tokens") else model.feature_info
        if not all(isinstance(i, int) and 0 <= i < len(channels) for i in self.earlier):
            raise ValueError(
                f"vision_config.earlier: got {self.earlier}, wanted some of the "
                f"{len(channels)} stages of feature maps that {config.architecture} has"
            )
        width = model.num_features + sum(channels[i]["num_chs"] for i in self.earlier)
        for name, got, wanted in (
            ("hidden_size", config.hidden_size, width),
            ("has_cls", config.has_cls, self.prefix > 0),
        ):
            if got != wanted:
                raise ValueError(
                    f"vision_config.{name}: got {got}, wanted {wanted} as {config.architecture} has"
                )
        self.model = model

    def forward_features(self, pixels: Tensor) -> Tensor:
        if self.earlier:
            last, earlier = self.model.forward_intermediates(pixels, indices=self.earlier)
        else:
            last, earlier = self.model.forward_features(pixels), []
        if last.dim() == 3:
            return torch.cat([last[:, : min(self.prefix, 1)], last[:, self.prefix :]], dim=1)
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            last = last.permute(0, 3, 1, 2)
        # The last map's places, with the earlier maps' channels behind their own.
        tokens = [last.flatten(2).transpose(1, 2)]
        for each in earlier:
            small = F.adaptive_avg_pool2d(each, last.shape[2:]).flatten(2).transpose(1, 2)
            tokens.append(F.layer_norm(small, small.shape[2:]))
        return torch.cat(tokens, dim=2)


def build_eva_tower(config: EvaVisionConfig) -> nn.Module:
    return build_eva(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        ffn_width=config.intermediate_size,
    )


def init_eva(module: nn.Module) -> None:
    """First weights of one of timm's modules, where transformers does not know how.

    Loaded weights are left alone.
    """
    from timm.models.eva import Eva, EvaAttention

    weights: Any
    if isinstance(module, Eva):
        for weights in (module.cls_token, module.pos_embed):
            init.trunc_normal_(weights, std=0.02)
    elif isinstance(module, EvaAttention):
        # The keys' bias is no weight but always zero, so no checkpoint holds it.
        for weights in (module.q_bias, module.k_bias, module.v_bias):
            init.zeros_(weights)
