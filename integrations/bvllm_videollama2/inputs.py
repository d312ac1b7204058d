"""Which image belongs to which placeholder, and prompts with visual tokens in their places.

Axes: B prompts, L ids of the longest, S length after splicing, D hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.hosts.generation import settled
from bvllm_adapters.hosts.splice import left_padded, placeholder_rows, splice
from bvllm_adapters.question import IGNORED_LABEL

IMAGE, VIDEO = -200, -201
PLACEHOLDERS = (IMAGE, VIDEO)

Visual = tuple[Tensor, str]
"""(T, 3, S, S) or (3, S, S) pixels and "video" or "image"."""


def used_images(input_ids: Tensor, attention_mask: Tensor | None, count: int) -> list[int]:
    """Which of `count` images stand for placeholders, in reading order.

    Upstream's collator gives each prompt without placeholder a dummy image; those are left out.

    Raises:
        ValueError: for neither as many images as placeholders nor as many as with dummies, or a
            mask of another shape.
    """
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}, "
            f"wanted {tuple(input_ids.shape)} as input_ids"
        )
    places = Counter(placeholder_rows(input_ids, PLACEHOLDERS, attention_mask))
    if count == places.total():
        return list(range(count))
    each_row = [places[row] for row in range(len(input_ids))]
    if count != sum(max(1, n) for n in each_row):
        raise ValueError(
            f"images: got {count}, wanted one for each of the {places.total()} placeholders "
            f"(and one for each of the {each_row.count(0)} prompts without, or none for them)"
        )
    used: list[int] = []
    next_image = 0
    for n in each_row:
        used += range(next_image, next_image + n)
        next_image += max(1, n)
    return used


def is_text_alone(input_ids: Tensor, images: Sequence[Visual] | None) -> bool:
    """Whether there is nothing to splice: no images, or a step of generation.

    Raises:
        ValueError: for placeholders without images.
    """
    if images is None and input_ids.shape[1] == 1:
        return True  # what a step's ids are is not looked at, as looking waits for the device
    count = len(placeholder_rows(input_ids, PLACEHOLDERS))
    if images is None and count:
        raise ValueError(f"images: got None, wanted one for each of the {count} placeholders")
    return images is None or (input_ids.shape[1] == 1 and count == 0)


def with_visual_tokens(
    input_ids: Tensor,
    embed: Callable[[Tensor], Tensor],
    visual: Sequence[Tensor],
    *,
    attention_mask: Tensor | None,
    labels: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """(B, S) mask, (B, S, D) embeddings and (B, S) labels of prompts and their visual tokens.

    Padding on the right stays where it is, as upstream has it. Padding elsewhere is taken out and
    put where the first column has it: on the left or, if it has none, on the right.

    Args:
        visual: (N, D) for each placeholder in reading order.
        attention_mask: None: no padding; then None comes back if all prompts are of one length.
    """
    mask = attention_mask
    if mask is not None and bool((mask[:, 1:].long() > mask[:, :-1].long()).any()):
        prompts = splice(
            input_ids,
            embed,
            visual,
            PLACEHOLDERS,
            attention_mask=mask,
            labels=labels,
            padding_side="right" if bool(mask[:, 0].all()) else "left",
        )
        padding = prompts.attention_mask == 0
        labels = prompts.labels
        if labels is not None:  # padding must not be taught what the word behind it is
            labels = torch.cat(
                [labels[:, :1], labels[:, 1:].masked_fill(padding[:, :-1], IGNORED_LABEL)], dim=1
            )
        return prompts.attention_mask, prompts.inputs_embeds, labels
    prompts = splice(input_ids, embed, visual, PLACEHOLDERS, labels=labels)
    spliced = prompts.attention_mask
    if mask is None:
        return None if bool(spliced.all()) else spliced, prompts.inputs_embeds, prompts.labels
    lengths = spliced.sum(dim=1) - (~mask.bool()).sum(dim=1)
    position = torch.arange(spliced.shape[1], device=spliced.device)
    inside = position < lengths[:, None]
    labels = prompts.labels
    if labels is not None:
        labels = labels.masked_fill(~inside, IGNORED_LABEL)
    return inside.to(mask.dtype), prompts.inputs_embeds, labels


def positions(mask: Tensor | None) -> Tensor | None:
    """(B, S) positions counting each row's tokens from 0; None where counting columns will do."""
    if mask is None or bool(mask[:, 0].all()):
        return None
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0)


def prompts_to_continue(
    model: Any, inputs: Tensor | None, images: Sequence[Visual] | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of transformers' generate(): prompts as embeddings, padded on the left.

    `max_length` and `min_length` count the prompts' ids, each placeholder one, and the new ones.
    """
    if inputs is None or "inputs_embeds" in kwargs:
        if inputs is not None or images is not None:
            raise ValueError("inputs_embeds: got it beside inputs or images, wanted one of them")
        return kwargs
    kwargs.pop("position_ids", None)
    _, mask, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
        input_ids=inputs,
        attention_mask=kwargs.pop("attention_mask", None),
        past_key_values=None,
        labels=None,
        images=images,
    )
    if embeds is None:
        embeds = model.get_model().embed_tokens(inputs)
    mask, embeds = left_padded(mask, embeds)
    settings = settled(
        model.generation_config, kwargs, prompt_length=inputs.shape[1], answers=False
    )
    return settings | {"attention_mask": mask, "inputs_embeds": embeds}
