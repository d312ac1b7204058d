"""Reading vision towers: transformers' CLIP and SigLIP at an inner layer, and which pixels fit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bvllm_adapters.weights.device import device_of


def hidden_state(encoder: Any, pixels: Tensor, layer: int) -> Tensor:
    """(B, 3, S, S) pixels -> (B, tokens, C) output of a layer: 0 the embeddings, -1 the last.

    The layers are called one after the other, no further than needed. transformers' own
    `output_hidden_states` is not used: it captures by hooks on the modules, which are set twice
    on a tower inside of a language model that is asked for its hidden states too, and then
    `hidden_states[-2]` is that of another layer.

    Args:
        encoder: a CLIPVisionModel or SiglipVisionModel, of whichever transformers 5.
        pixels: are moved to where, and in what dtype, its weights are. Smaller ones than usual,
            which a scout may give, are seen with position embeddings between the usual ones.

    Raises:
        ValueError: for pixels of another size.
    """
    vision = getattr(encoder, "vision_model", encoder)
    check_pixels("pixels", pixels, vision.config.image_size, vision.config.patch_size)
    weight = vision.embeddings.patch_embedding.weight
    hidden: Tensor = vision.embeddings(
        pixels.to(device_of(vision), weight.dtype), interpolate_pos_encoding=True
    )
    if hasattr(vision, "pre_layrnorm"):  # CLIP
        hidden = vision.pre_layrnorm(hidden)
    layers = vision.encoder.layers
    for i in range(range(len(layers) + 1)[layer]):
        hidden = layers[i](hidden, attention_mask=None)
    return hidden


def has_cls(encoder: Any) -> bool:
    """Whether the first of its tokens stands for the whole frame."""
    vision = getattr(encoder, "vision_model", encoder)
    return hasattr(vision.embeddings, "class_embedding")


def check_pixels(name: str, pixels: Tensor, image_size: int, patch_size: int) -> None:
    """ValueError unless a tower takes them: of its size or, by a scout, a smaller whole grid."""
    side = pixels.shape[-1]
    sizes = (*range(patch_size, image_size, patch_size), image_size)
    if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, side, side) or side not in sizes:
        raise ValueError(
            f"{name}: got shape {tuple(pixels.shape)}, wanted (k, 3, {image_size}, {image_size}), "
            f"or smaller by multiples of {patch_size}"
        )
