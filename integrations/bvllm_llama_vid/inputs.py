"""Which visual input belongs to which placeholder: upstream's `images=` and `prompts=`, checked.

Axes: B prompts (rows), L ids, T frames, P patches, C vision width, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.hosts.splice import splice
from bvllm_llama_vid.configuration import IMAGE_TOKEN_ID


@dataclass(frozen=True, eq=False)
class VisualRow:
    """The visual input of one row of ids.

    Args:
        row: of the batch. placeholders: how many the row has.
        frames: (T, 3, S, S) pixels, or (T, P, C) features that were computed beforehand.
        prompts: the questions to it, the i-th for the i-th placeholder; None: not said.
    """

    row: int
    placeholders: int
    frames: Tensor
    prompts: list[str] | None

    @property
    def is_features(self) -> bool:
        return self.frames.dim() == 3


def is_placeholder(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """(B, L) whether a visual input stands there."""
    found = input_ids == IMAGE_TOKEN_ID
    return found if attention_mask is None else found & attention_mask.bool()


def visual_rows(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    images: Any,
    prompts: Sequence[Sequence[str]] | None,
    vision_width: int,
) -> list[VisualRow]:
    """The rows that have placeholders, each with its visual input and questions.

    Args:
        images: a (T, 3, S, S) video, a (3, S, S) image or (T, P, C) features for each row (what
            a row without placeholder has is left alone), or for each row with a placeholder;
            as a list, or stacked as (B, 3, S, S) or (B, T, 3, S, S).
        prompts: of each visual input the list of its questions.
        vision_width: C.

    Raises:
        ValueError: naming the argument, what came and what was wanted.
    """
    counts = is_placeholder(input_ids, attention_mask).sum(dim=1).tolist()
    with_visual = [row for row, count in enumerate(counts) if count]
    wanted = f"one for each of {len(counts)} rows, or of the {len(with_visual)} with placeholders"
    if isinstance(images, Tensor) and images.dim() not in (4, 5):
        raise ValueError(
            f"images: got shape {tuple(images.shape)}, "
            "wanted (B, 3, S, S), (B, T, 3, S, S) or a list of tensors"
        )
    if len(images) not in (len(counts), len(with_visual)):
        raise ValueError(f"images: got {len(images)}, wanted {wanted}")
    if isinstance(prompts, str) or (prompts and any(isinstance(p, str) for p in prompts)):
        raise ValueError(
            "prompts: got strings, wanted for each visual input a list of its questions"
        )
    if prompts is not None and len(prompts) != len(images):
        raise ValueError(f"prompts: got {len(prompts)}, wanted {len(images)} as images")
    rows = []
    for i, row in enumerate(with_visual):
        place = row if len(images) == len(counts) else i
        frames = _frames(images[place], place, vision_width)
        questions = None if prompts is None else list(prompts[place])
        rows.append(VisualRow(row, int(counts[row]), frames, questions))
    return rows


def _frames(image: Tensor, place: int, vision_width: int) -> Tensor:
    # Features are told by their three axes and their width. Upstream takes anything wider than
    # 1000 for features, so also frames of more than 1000 pixels.
    shape = tuple(image.shape)
    if len(shape) == 4 and shape[0] > 0 and shape[1] == 3:
        return image
    if len(shape) == 3 and shape[0] == 3 and shape[1] == shape[2]:
        return image[None]
    if len(shape) == 3 and shape[2] == vision_width and 0 not in shape:
        return image
    raise ValueError(
        f"images[{place}]: got shape {shape}, wanted (T, 3, S, S) or (3, S, S) pixels, "
        f"or (T, P, {vision_width}) features, and no empty axis"
    )


def mask_of_words(
    input_ids: Tensor, attention_mask: Tensor | None, cache: Any, images: Any
) -> Tensor | None:
    """The mask of prompts without placeholders, or of further words behind spliced ones: a script's
    own decoding loop counts ids where the cache counts visual tokens too.

    Raises:
        ValueError: for placeholders without images.
    """
    # A step's one id is not looked at, as looking waits for the device.
    if images is None and input_ids.shape[1] > 1:
        count = int(is_placeholder(input_ids).sum())
        if count:
            raise ValueError(f"images: got None, wanted one for each of the {count} placeholders")
    if images is None or cache is None or attention_mask is None:
        return attention_mask
    return attention_mask.new_ones(len(input_ids), cache.get_seq_length() + input_ids.shape[1])


def splice_as_upstream(
    input_ids: Tensor,
    embed: Callable[[Tensor], Tensor],
    visual: Sequence[Tensor],
    attention_mask: Tensor | None,
    labels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`splice` for this host: embeddings (B, S, D), mask (B, S), labels (B, S).

    Where rows are padded on the right, padding words stay where they were and are masked, as
    upstream has it; so S and all values are upstream's. Padded otherwise, as upstream gets wrong,
    rows lose their padding, and get it anew on the side on which they had it.
    """
    if attention_mask is None or not bool((attention_mask.long().diff(dim=1) > 0).any()):
        padding = (
            torch.zeros_like(input_ids) if attention_mask is None else 1 - attention_mask.long()
        )
        ids = torch.where(padding.bool(), input_ids.clamp_min(0), input_ids)
        spliced = splice(ids, embed, visual, [IMAGE_TOKEN_ID], labels=labels)
        ends = spliced.attention_mask.sum(dim=1) - padding.sum(dim=1)
        position = torch.arange(spliced.attention_mask.shape[1], device=ids.device)
        mask = position < ends[:, None]
        if attention_mask is not None:
            mask = mask.to(attention_mask.dtype)
        return spliced.inputs_embeds, mask, spliced.labels
    spliced = splice(
        input_ids,
        embed,
        visual,
        [IMAGE_TOKEN_ID],
        attention_mask=attention_mask,
        labels=labels,
        padding_side="left" if bool((attention_mask[:, 0] == 0).any()) else "right",
    )
    return spliced.inputs_embeds, spliced.attention_mask, spliced.labels
