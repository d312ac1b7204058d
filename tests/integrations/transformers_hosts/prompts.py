"""A family's prompt with other groups in it, longer or shorter, and several prompts as a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny import Family, Inputs
from torch import Tensor, nn

# Ids of the prompts in tests/data/transformers_hosts: below IMAGE are words, from it on brackets
# and placeholders. Brackets of a whole video are GLM's: there a group's text comes after it.
IMAGE, VIDEO, VIDEO_START, PAD = 280, 281, 284, 0
CLIPS = {  # (B, T, ...); the others have frames, patches or their rows on the first axis
    "instructblipvideo",
    "llava_next_video",
    "llava_onevision",
    "nemotron_h_omni",
    "perception_lm",
    "smolvlm",
    "video_llava",
}
PACKED = {"minicpm_ocr", "minicpmv4_6", "minicpmv4_7"}  # (1, 3, patch, columns of all frames)
PIXELS = ("pixel_values", "pixel_values_videos")
BY_GROUP = (*PIXELS, "video_position_ids", "video_token_pooling", "target_sizes_videos")
COUNTS = ("video_grid_thw", "video_grids", "num_frames_per_video")


def placeholders(inputs: Inputs) -> Tensor:
    """(n,) where the placeholders of the one prompt stand."""
    ids = inputs["input_ids"][0]
    # The image's if it comes at all, else the video's: no prompt here has both.
    return (ids == (IMAGE if bool((ids == IMAGE).any()) else VIDEO)).nonzero().flatten()


def group_of(family: Family, inputs: Inputs) -> Tensor:
    """(L,) the group of each token of the one prompt, its text and brackets too; -1: of none.

    At `placeholders` these are the frames of the placeholders, of longer prompts as well.
    """
    ids, at = inputs["input_ids"][0], placeholders(inputs)
    out = torch.full_like(ids, -1)
    tail = family.frame_of_placeholder.count(-1)
    size = (len(family.frame_of_placeholder) - tail) // family.groups
    starts = at[: len(at) - tail : size].tolist()
    step = starts[1] - starts[0] if len(starts) > 1 else _step(family)
    before = 0  # one block of placeholders
    if step > size:  # a bracket, or three words and a bracket
        before = 1 if bool((ids == VIDEO_START).any()) else 4
    for group, start in enumerate(starts):
        out[start - before : start - before + step] = group
    return out


def _step(family: Family) -> int:
    """How far a group lies from the next, which one group alone does not tell."""
    whole = family.inputs()
    at = placeholders(whole)
    return int(at[family.frame_of_placeholder.index(1)] - at[0])


def groups_in(family: Family, inputs: Inputs) -> int:
    """How many groups the one prompt has."""
    return int(group_of(family, inputs).max()) + 1


def take(family: Family, inputs: Inputs, groups: Sequence[int]) -> Inputs:
    """The one prompt with these groups alone, in this order; a group may come more than once."""
    of, count = group_of(family, inputs), groups_in(family, inputs)
    first = int((of >= 0).nonzero()[0])
    last = int((of >= 0).nonzero()[-1])
    order = torch.cat(
        [
            torch.arange(first),
            *[(of == group).nonzero().flatten() for group in groups],
            torch.arange(last + 1, len(of)),
        ]
    )
    out = {}
    for name, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            out[name] = value[:, order]
        elif name in BY_GROUP:
            axis = -1 if family.name in PACKED and name in PIXELS else int(family.name in CLIPS)
            parts = value.chunk(count, axis)
            chosen = [parts[group] for group in groups]
            if name == "video_token_pooling":  # each row names the patches that it pools
                frames, patches = inputs["pixel_values_videos"].shape[:2]
                moved = frames // count * patches
                chosen = [
                    _shift(part, (new - old) * moved)
                    for new, (old, part) in enumerate(zip(groups, chosen, strict=True))
                ]
            out[name] = torch.cat(chosen, axis)
        elif name in COUNTS:
            out[name] = _counts(value, count, groups)
        else:
            out[name] = value.clone()
    return out


def _shift(pooling: Tensor, by: int) -> Tensor:
    """Numbers of patches, -1 for none, that stand so much later."""
    return torch.where(pooling < 0, pooling, pooling + by)


def _counts(value: Tensor, count: int, groups: Sequence[int]) -> Tensor:
    """A grid (T, h, w), or T alone, of other groups; Kimi has one grid for each."""
    if value.ndim == 2 and len(value) > 1:
        return value[list(groups)]
    out = value.clone()
    out.view(-1)[0] = int(value.view(-1)[0]) // count * len(groups)
    return out


def longer(family: Family, inputs: Inputs, groups: int, seed: int = 0) -> Inputs:
    """The one prompt with this number of groups, more or fewer; pixels and times drawn anew."""
    count = groups_in(family, inputs)
    out = take(family, inputs, [group % count for group in range(groups)])
    generator = torch.Generator().manual_seed(seed)
    ids = out["input_ids"]
    # The groups' own text tells their times: no two may say the same.
    words = (group_of(family, out)[None] >= 0) & (ids < IMAGE)
    fresh = torch.randint(1, 250, ids.shape, generator=generator)
    out["input_ids"] = torch.where(words, fresh, ids)
    for name in PIXELS:
        if name in out:
            out[name] = torch.randn(out[name].shape, generator=generator)
    return out


def batch(family: Family, prompts: Sequence[Inputs], side: str = "left") -> Inputs:
    """Several prompts as one, the shorter ones padded on this side, "left" or "right".

    Raises:
        ValueError: the family stacks clips, as its processor does, and these differ in length.
    """
    lengths = [one["input_ids"].shape[1] for one in prompts]
    out = {}
    for name, value in prompts[0].items():
        values = [one[name] for one in prompts]
        if value.shape == prompts[0]["input_ids"].shape:
            fill = PAD if name == "input_ids" else 0
            padded = []
            for one, length in zip(values, lengths, strict=True):
                missing = max(lengths) - length
                room = (missing, 0) if side == "left" else (0, missing)
                padded.append(nn.functional.pad(one, room, value=fill))
            out[name] = torch.cat(padded)
        elif name in PIXELS and family.name in CLIPS:
            if len({one.shape[1] for one in values}) > 1:
                raise ValueError(f"{family.name} stacks clips: they must be of one length")
            out[name] = torch.cat(values)
        else:
            if name == "video_token_pooling":  # Molmo2 counts patches through the whole batch
                sizes = [one["pixel_values_videos"].shape[:2].numel() for one in prompts]
                values = [_shift(one, sum(sizes[:i])) for i, one in enumerate(values)]
            axis = -1 if family.name in PACKED and name in PIXELS else 0
            out[name] = torch.cat(values, axis)
    return out
