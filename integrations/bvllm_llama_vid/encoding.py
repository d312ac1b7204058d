"""Frames as a LLaMA-VID's vision tower sees them, its port's or a live one's of upstream.

Axes: T frames, S image size in pixels, P patches, C vision width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.features import FrameFeatures, encode_in_chunks

CHUNK = 32  # frames encoded at a time
KEEP = 256  # frames up to which patches are kept; of more, the chosen ones are encoded again

FrameReader = Callable[[Tensor], Tensor]
"""(k,) int64 frame indices -> (k, 3, S, S) pixels."""


def features_of(model: Any, frames: Tensor) -> FrameFeatures:
    """(T, 3, S, S) pixels through the model's tower, or (T, P, C) features as they are."""
    if frames.dim() == 4:
        seconds = torch.arange(len(frames), dtype=torch.float64)
        return encode(model, lambda indices: frames[indices.to(frames.device)], seconds)
    weight = model.get_input_embeddings().weight
    # In float32: the mean of 256 patches in half precision would lose what tells frames apart.
    features = frames.to(weight.device)
    return FrameFeatures(features.float().mean(dim=1), features)


def encode(model: Any, read: FrameReader, seconds: Tensor) -> FrameFeatures:
    """A video of any length, a chunk of frames at a time."""
    device = model.get_input_embeddings().weight.device

    def look(indices: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tower_tokens(model, read(indices)).to(device)
        return tokens[:, 0], tokens[:, 1:]

    count = len(seconds)
    return encode_in_chunks(look, count, seconds, chunk_size=CHUNK, keep_patches=count <= KEEP)


@torch.no_grad()
def tower_tokens(model: Any, pixels: Tensor) -> Tensor:
    """(T, 3, S, S) -> (T, 1 + P, C), CLS first, of our tower or of either of upstream's."""
    tower = model.get_vision_tower()
    if hasattr(tower, "tokens"):
        tokens: Tensor = tower.tokens(pixels)
        return tokens
    weight = next(tower.parameters())
    pixels = pixels.to(weight.device, weight.dtype)
    if hasattr(tower, "select_layer"):  # CLIP's, which gives its patches only
        states = tower.vision_tower(pixels, output_hidden_states=True).hidden_states
        tokens = states[tower.select_layer]
    else:
        tokens = tower(pixels)
    return tokens
