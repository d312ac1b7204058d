"""What the vision tower sees of frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.features import FrameFeatures, frame_and_patches
from bvllm_adapters.seeing.encoding import encode_pixels
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.towers import has_cls, hidden_state


@torch.no_grad()
def look(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(k, 3, S, S) pixels -> (k, C) frame features, (k, P, C) patches, on the words' device.

    A frame's feature is the CLS token at the host's select layer, or the mean or maximum of its
    patches where the tokenizer's config says so; the mean where the tower has no CLS token.
    """
    tower = model.get_vision_tower()
    config = model.balanced_tokenizer.config
    with_cls = has_cls(tower.vision_tower)
    feature = config.frame_feature
    if feature == "cls" and not with_cls:
        feature = "mean"
    tokens = hidden_state(tower.vision_tower, pixels, tower.select_layer)
    tokens = tokens.to(device_of(model.get_input_embeddings()))
    return frame_and_patches(tokens, has_cls=with_cls, frame_feature=feature)


def frame_features(model: Any, pixels: Tensor, seconds: Tensor | None = None) -> FrameFeatures:
    """(T, 3, S, S) pixels of one video or image as the model's tower sees it, a chunk at a time.

    Args:
        seconds: (T,) their times; None: one a second.
    """
    return encode_pixels(
        lambda chunk: look(model, chunk), pixels, seconds, model.balanced_tokenizer
    )


def frames_of(i: int, pixels: Tensor, kind: str) -> Tensor:
    """(T, 3, S, S) pixels of images[i]; upstream's image of many equal frames becomes one frame."""
    frames = pixels[None] if pixels.dim() == 3 else pixels
    if not frames.is_floating_point() or frames.dim() != 4 or len(frames) == 0:
        raise ValueError(
            f"images[{i}]: got {pixels.dtype} {tuple(pixels.shape)}, "
            "wanted floating point (T, 3, S, S), or (3, S, S), with at least one frame"
        )
    if not bool(torch.isfinite(frames).all()):
        raise ValueError(f"images[{i}]: got NaN or inf, wanted finite numbers")
    if kind == "image" and bool((frames == frames[:1]).all()):
        return frames[:1]
    return frames
