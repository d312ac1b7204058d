"""Which placeholders of a batch's prompts are of which video, and which are of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bvllm_transformers.arguments import VIDEO
from bvllm_transformers.families import Family
from bvllm_transformers.placeholders import Place, find
from bvllm_transformers.splice import Filled, kept_groups
from bvllm_transformers.splits import Inputs, Split


def places_of_videos(model: Any, family: Family, inputs: Inputs) -> list[Place]:
    """Where the videos of a batch stand; frames that go in as images are a video."""
    split = family.split
    if split.pixels not in inputs or split.are_images(inputs):
        return []
    holes = placeholders_of(model, family, inputs)
    return find(
        inputs["input_ids"], holes, split.groups(inputs), split.weights(inputs),
        tail=family.tail, text_after=family.text_after,
        single=split.single(inputs), loose=split.loose,
    )  # fmt: skip


def placeholders_of(model: Any, family: Family, inputs: Inputs, images: bool = False) -> Tensor:
    """(B, L) bool, those of videos or of images."""
    ids: Tensor = inputs["input_ids"]
    holes: Tensor = ids == getattr(model.config, "image_token_id" if images else family.token)
    if not family.shares_token or "pixel_values" not in inputs or family.split.pixels not in inputs:
        return holes
    if family.key == "video" and not hasattr(model.config, "video_start_token_id"):
        raise ValueError(
            f"pixel_values: got images beside {family.split.pixels}, wanted one of both: a "
            f"{type(model).__name__} takes either"
        )
    types = inputs.get("mm_token_type_ids")
    if types is None:
        raise ValueError(
            "mm_token_type_ids: got None, wanted those that the processor gives: this model's "
            "frames and images have one placeholder"
        )
    of_videos: Tensor = types == VIDEO
    return holes & (of_videos != images)


def holes_of_images(model: Any, family: Family, inputs: Inputs) -> Tensor | None:
    """(B, L) bool, the placeholders of images that are no frames; None: there are none."""
    split = family.split
    if "pixel_values" not in inputs:
        return None
    if split.pixels == "pixel_values" and not split.are_images(inputs):
        return None
    return placeholders_of(model, family, inputs, images=True)


def kept_of(split: Split, inputs: Inputs, videos: Sequence[Filled]) -> list[Tensor]:
    """Of each video the groups that are left; without text of their own groups cannot go."""
    kept = [torch.arange(t) for t in split.groups(inputs)]
    single = split.single(inputs)
    for each in videos:
        if not each.place.own_text:
            continue
        left = torch.tensor(kept_groups(each), dtype=torch.int64)
        if not single:
            kept[each.place.video] = left
            continue
        for group in range(each.place.num_groups):
            kept[each.place.video + group] = left[left == group]
    return kept
