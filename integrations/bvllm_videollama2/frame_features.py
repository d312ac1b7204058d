"""What the vision tower sees of a video, a chunk of frames at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.features import FrameFeatures, encode_in_chunks

FrameReader = Callable[[Tensor], Tensor]
"""(k,) int64 frame indices, ascending and distinct -> (k, 3, S, S) pixels."""

CHUNK = 16  # frames that the tower sees at a time
KEEP = 512  # of longer videos, only chosen frames' patches are computed again, none are kept


def frame_features(
    model: Any, read: FrameReader, count: int, seconds: Tensor | None = None
) -> FrameFeatures:
    """One video or image as the model's tower sees it, a chunk of frames at a time.

    A frame's feature is the CLS token at the host's select layer, or the mean or maximum of its
    patches where the tokenizer's config says so; the mean where the tower has no CLS token.

    Args:
        read: gives the pixels of the frames asked for. count: how many frames there are.
        seconds: (T,) their times; None: one a second.
    """
    from bvllm_videollama2.vision_tower import has_cls, hidden_state

    tower = model.get_vision_tower()
    config = model.balanced_tokenizer.config
    first = int(has_cls(tower.vision_tower))
    device = model.get_input_embeddings().weight.device

    @torch.no_grad()
    def look(indices: Tensor) -> tuple[Tensor, Tensor]:
        tokens = hidden_state(tower.vision_tower, read(indices), tower.select_layer).to(device)
        patches = tokens[:, first:]
        if config.frame_feature == "max":
            return patches.amax(dim=1), patches
        whole = config.frame_feature == "cls" and first
        return tokens[:, 0] if whole else patches.mean(dim=1), patches

    # Soft choices mix the patches of all frames, so those must be there.
    gather = not model.training and config.evaluation == "hard"
    return encode_in_chunks(
        look, count, seconds, chunk_size=CHUNK, keep_patches=not gather or count <= KEEP
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
