"""What a budgeted model must equal, from the unmodified model alone.

Nothing here knows how a budget is applied: no features are taken out, no prompt is made shorter.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from prompts import placeholders, take
from tiny import Family, Inputs
from torch import Tensor

# Why masking is no reference for some: what a token that is masked has left in a state stays there.
STATEFUL = {
    "glm5_next",
    "lfm3_vl",
    "minicpm_ocr",
    "minicpmv4_6",
    "minicpmv4_7",
    "nemotron_h_omni",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
}
# More than embeddings goes into these: features of further layers, or what ids say once more.
NEEDS_IDS = {
    "cohere_compass",
    "cosmos3_omni",
    "gemma4",
    "instructblipvideo",
    "qwen3_omni_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
}
# The tower attends over all frames of a clip: fewer of them are other features.
TIME_IN_TOWER = {"minimax_m3_vl"}


@torch.no_grad()
def native(model: Any, family: Family, inputs: Inputs, groups: Sequence[int]) -> Tensor:
    """(1, L', V) logits of the unmodified model that is given these groups alone.

    Their text goes with those that are left out, and positions are those of a clip that never had
    them: in models of one block with m-RoPE times close up, where `masked` keeps them.
    """
    return model(**take(family, inputs, groups)).logits


@torch.no_grad()
def masked(model: Any, inputs: Inputs, keep: Tensor, places: Tensor | None = None) -> Tensor:
    """(1, kept, V) logits at the tokens kept, of the unmodified model with the others masked out.

    No reference for STATEFUL models, nor where a sliding window is shorter than the prompt.

    Args:
        keep: (L,) bool, of the one prompt's tokens.
        places: position_ids, (rows, 1, L) or (1, L). If None, with m-RoPE tokens keep the
            positions that they have in the whole prompt; else they are counted anew.
    """
    mask = inputs["attention_mask"] * keep
    if places is None:
        places = positions(model, inputs)
    if places is None or places.ndim == 2:
        places = (mask.cumsum(1) - 1).clamp(min=0)
    given = {**inputs, "attention_mask": mask, "position_ids": places}
    if "position_ids" not in inspect.signature(model.forward).parameters:
        del given["position_ids"]  # its language model counts by the mask by itself
    return model(**given).logits[:, keep]


@torch.no_grad()
def embedded(model: Any, inputs: Inputs, keep: Tensor, places: Tensor | None = None) -> Tensor:
    """(1, kept, V) logits of the unmodified model that is given the embeddings of the tokens kept.

    The reference for STATEFUL models, and for most others to the bit; not for NEEDS_IDS.

    Args:
        keep, places: as `masked` takes them.
    """
    given = _given_to_decoder(model, inputs)
    if places is None:
        places = given.get("position_ids")
    shape = inputs["input_ids"].shape
    prompt = {name: one[:, keep] for name, one in inputs.items() if one.shape == shape}
    del prompt["input_ids"]
    prompt["inputs_embeds"] = given["inputs_embeds"][:, keep]
    if places is not None and places.ndim == 3:
        prompt["position_ids"] = places[..., keep]
        # With the token types it would look for a grid.
        prompt.pop("mm_token_type_ids", None)
    return model(**prompt).logits


@torch.no_grad()
def positions(model: Any, inputs: Inputs) -> Tensor | None:
    """What the unmodified model gives its decoder: (3 or 4, 1, L), (1, L), or None for 0, 1, ..."""
    return _given_to_decoder(model, inputs).get("position_ids")


def places_of(model: Any, inputs: Inputs, keep: Tensor, shorter: Inputs) -> Tensor | None:
    """position_ids of the whole prompt with those of a shorter one at its tokens kept.

    None where positions are counted by the mask.
    """
    own = positions(model, shorter)
    if own is None or own.ndim == 2:
        return None
    places = positions(model, inputs).clone()
    places[..., keep] = own
    return places


def _given_to_decoder(model: Any, inputs: Inputs) -> dict[str, Any]:
    given: dict[str, Any] = {}
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
    )
    try:
        model(**inputs)
    finally:
        handle.remove()
    return given


def kept(inputs: Inputs, choice: Tensor) -> Tensor:
    """(L,) bool: every token of the one prompt but the placeholders not chosen.

    Args:
        choice: (n,) bool, of its placeholders in order.
    """
    keep = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    keep[placeholders(inputs)[~choice]] = False
    return keep
