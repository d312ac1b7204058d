"""Frames as a LLaMA-VID's vision tower sees them, its port's or a live one's of upstream.

Axes: T frames, S image size in pixels, P patches, C vision width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.features import FrameFeatures, frame_and_patches
from bvllm_adapters.seeing.encoding import encode_pixels
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.towers import hidden_state


def features_of(model: Any, frames: Tensor) -> FrameFeatures:
    """(T, 3, S, S) pixels through the model's tower, or (T, P, C) features as they are."""
    if frames.dim() == 4:
        return encode_pixels(
            lambda chunk: look(model, chunk), frames, None, model.balanced_tokenizer
        )
    # In float32: the mean of 256 patches in half precision would lose what tells frames apart.
    features = frames.to(device_of(model.get_input_embeddings()))
    return FrameFeatures(features.float().mean(dim=1), features)


def look(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(k, 3, S, S) pixels -> (k, C) frame features, (k, P, C) patches, on the words' device.

    Both kinds of tower have a CLS token.
    """
    tokens = tower_tokens(model, pixels).to(device_of(model.get_input_embeddings()))
    feature = model.balanced_tokenizer.config.frame_feature
    return frame_and_patches(tokens, has_cls=True, frame_feature=feature)


@torch.no_grad()
def tower_tokens(model: Any, pixels: Tensor) -> Tensor:
    """(T, 3, S, S) -> (T, 1 + P, C), CLS first, of our tower or of either of upstream's."""
    tower = model.get_vision_tower()
    if hasattr(tower, "tokens"):
        tokens: Tensor = tower.tokens(pixels)
        return tokens
    if hasattr(tower, "select_layer"):  # CLIP's, which gives its patches only
        return hidden_state(tower.vision_tower, pixels, tower.select_layer)
    weight = next(tower.parameters())
    tokens = tower(pixels.to(device_of(tower), weight.dtype))
    return tokens
