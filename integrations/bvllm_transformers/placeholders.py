"""Where the visual inputs of a prompt stand in its ids, and which text belongs to which group.

Axes: T groups of a video (see `splits`), P tokens of a group, L ids of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bvllm_transformers.own_text import Span, spans_of


@dataclass(frozen=True, eq=False)
class Place:
    """One visual input in a prompt.

    Args:
        row: which prompt of the batch. video: which of the batch's videos, or the first of frames
            that a model takes as single images.
        columns: (T, P) int64, those of each group's placeholders.
        tail: columns of placeholders that are no group's.
        spans: of each group with its own text and brackets; those of groups alone where a video
            is one block.
    """

    row: int
    video: int
    columns: Tensor
    tail: list[int]
    spans: list[Span]
    own_text: bool
    """Whether there is text between the groups, such as their times."""
    is_video: bool = True
    """False: an image beside videos, counted apart from them."""
    tiles: int = 1
    """Pictures of the model's that make one group, as those of an image in tiles do."""

    @property
    def num_groups(self) -> int:
        return len(self.columns)


def find(
    ids: Tensor,
    holes: Tensor,
    groups: Sequence[int],
    weights: Sequence[int],
    *,
    tail: int = 0,
    text_after: bool = False,
    single: bool = False,
    loose: bool = False,
    name: str = "input_ids",
) -> list[Place]:
    """The places of a batch's videos, in their order; a video without frames has none.

    Args:
        ids: (B, L). holes: (B, L) bool, the placeholders.
        groups: T of each video of the batch, in order. weights: of each, numbers in proportion to
            its P. tail: placeholders behind each video that are of no group.
        text_after: whether a group's own text stands behind it.
        single: each group is counted as a video of its own; those of a prompt are joined to one.
        loose: what is counted as one video may be several, with words between them.

    Raises:
        ValueError: the prompts do not have the placeholders that their pixels fill.
    """
    counts = tokens_of_groups(int(holes.sum()), groups, weights, tail)
    wanted = [t * p + tail if t * p else 0 for t, p in zip(groups, counts, strict=True)]
    videos = iter([video for video, size in enumerate(wanted) if size])
    found: list[Place] = []
    for row, mask in enumerate(holes.cpu()):
        columns = mask.nonzero().squeeze(1)
        words = ids[row].tolist()
        own: list[tuple[int, Tensor, list[int]]] = []
        while len(columns):
            video = next(videos, -1)
            if video < 0 or len(columns) < wanted[video]:
                raise ValueError(
                    f"{name}: got {int(mask.sum())} visual placeholders in prompt {row}, "
                    f"wanted those of whole videos, of {wanted} tokens each"
                )
            inside, columns = columns[: wanted[video]], columns[wanted[video] :]
            cut = len(inside) - tail
            own.append((video, inside[:cut].view(groups[video], -1), inside[cut:].tolist()))
        if single:
            found += joined(row, [part[:2] for part in own], words, text_after)
            continue
        begin = 0
        for i, (video, inside, rest) in enumerate(own):
            end = int(own[i + 1][1][0, 0]) if i + 1 < len(own) else len(words)
            spans, own_text = spans_of(
                words, bare(inside), begin=begin, end=end, text_after=text_after, loose=loose
            )
            found.append(Place(row, video, inside, rest, spans, own_text))
            begin = max(spans[-1][1], *(column + 1 for column in rest), 0)
    missing = len(list(videos))
    if missing:
        raise ValueError(f"{name}: got prompts for all but {missing} videos, wanted them for all")
    return found


def tokens_of_groups(
    total: int, groups: Sequence[int], weights: Sequence[int], tail: int
) -> list[int]:
    """P of each video: `total` placeholders shared out in proportion to the weights."""
    parts = sum(t * weight for t, weight in zip(groups, weights, strict=True))
    inside = total - tail * sum(t > 0 for t in groups)
    counts = [inside * weight // parts if parts else 0 for weight in weights]
    short = any(
        t and weight and not p for t, weight, p in zip(groups, weights, counts, strict=True)
    )
    if sum(t * p for t, p in zip(groups, counts, strict=True)) != inside or short:
        raise ValueError(
            f"input_ids: got {total} visual placeholders, wanted a number that fits the pixels of "
            f"{list(groups)} frames or groups"
        )
    return counts


def joined(
    row: int, frames: Sequence[tuple[int, Tensor]], words: Sequence[int], text_after: bool
) -> list[Place]:
    """Frames that are counted as videos of their own -> one place for all of them in a prompt.

    An image of several tiles, whose placeholders are one run, stays an image: one group. So does
    each frame where they differ in size; it goes with its text when no token of it is left.

    Args:
        frames: (number, (1, P)) of each in the prompt.
    """
    if not frames:
        return []
    columns = [inside[0] for _, inside in frames]
    edges = bare(columns)
    apart = [edges[i][1] < edges[i + 1][0] for i in range(len(edges) - 1)]
    equal = len({len(own) for own in columns}) == 1
    if all(apart):
        spans, own_text = spans_of(words, edges, text_after=text_after, loose=True)
        if equal:
            return [Place(row, frames[0][0], torch.stack(columns), [], spans, own_text)]
        return [
            Place(row, video, inside, [], [span], own_text)
            for (video, inside), span in zip(frames, spans, strict=True)
        ]
    found = []
    cuts = [0, *(i + 1 for i, gap in enumerate(apart) if gap), len(frames)]
    for begin, end in pairwise(cuts):
        run = torch.cat(columns[begin:end])[None]
        tiles = end - begin
        found.append(Place(row, frames[begin][0], run, [], bare(run), False, tiles=tiles))
    return found


def bare(columns: Sequence[Tensor] | Tensor) -> list[Span]:
    """(P,) of each group, of any sizes -> the span of its placeholders."""
    return [(int(own[0]), int(own[-1]) + 1) for own in columns]
