"""Where the visual inputs of a prompt stand in its ids, and which text belongs to which group.

Axes: T groups of a video (see `splits`), P tokens of a group, L ids of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Span = tuple[int, int]
"""From one column of the ids to before another."""


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
    name: str = "input_ids",
) -> list[Place]:
    """The places of a batch's videos, in their order.

    Args:
        ids: (B, L). holes: (B, L) bool, the placeholders.
        groups: T of each video of the batch, in order. weights: of each, numbers in proportion to
            its P. tail: placeholders behind each video that are of no group.
        text_after: whether a group's own text stands behind it.

    Raises:
        ValueError: the prompts do not have the placeholders that their pixels fill.
    """
    counts = tokens_of_groups(int(holes.sum()), groups, weights, tail)
    wanted = [t * p + tail for t, p in zip(groups, counts, strict=True)]
    places: list[Place] = []
    for row, mask in enumerate(holes.cpu()):
        columns = mask.nonzero().squeeze(1)
        words = ids[row].tolist()
        while len(columns):
            video = len(places)
            if video == len(wanted) or len(columns) < wanted[video]:
                raise ValueError(
                    f"{name}: got {len(mask.nonzero())} visual placeholders in prompt {row}, "
                    f"wanted those of whole videos, of {wanted} tokens each"
                )
            own, columns = columns[: wanted[video]], columns[wanted[video] :]
            inside = own[: len(own) - tail].view(groups[video], counts[video])
            spans, own_text = spans_of(words, inside, text_after)
            places.append(
                Place(row, video, inside, own[len(own) - tail :].tolist(), spans, own_text)
            )
    if len(places) < len(wanted):
        raise ValueError(f"{name}: got prompts for {len(places)} videos, wanted {len(wanted)}")
    return places


def tokens_of_groups(
    total: int, groups: Sequence[int], weights: Sequence[int], tail: int
) -> list[int]:
    """P of each video: `total` placeholders shared out in proportion to the weights."""
    parts = sum(t * weight for t, weight in zip(groups, weights, strict=True))
    inside = total - tail * len(groups)
    counts = [inside * weight // parts if parts else 0 for weight in weights]
    if sum(t * p for t, p in zip(groups, counts, strict=True)) != inside or 0 in counts:
        raise ValueError(
            f"input_ids: got {total} visual placeholders, wanted a number that fits the pixels of "
            f"{list(groups)} frames or groups"
        )
    return counts


def joined(places: Sequence[Place], ids: Tensor, text_after: bool = False) -> list[Place]:
    """Frames that a model takes as single images -> one place for all of them in a prompt.

    An image of several tiles, whose placeholders are one run, stays an image: one group.
    """
    rows: dict[int, list[Place]] = {}
    for place in places:
        rows.setdefault(place.row, []).append(place)
    found = []
    for row, frames in rows.items():
        columns = torch.stack([frame.columns[0] for frame in frames])
        apart = columns[1:, 0] - columns[:-1, -1] > 1
        words = ids[row].tolist()
        if bool(apart.all()):
            spans, own_text = spans_of(words, columns, text_after)
            found.append(Place(row, frames[0].video, columns, [], spans, own_text))
            continue
        cuts = [0, *(apart.nonzero().squeeze(1) + 1).tolist(), len(frames)]
        for begin, end in pairwise(cuts):
            run = columns[begin:end].reshape(1, -1)
            span = (int(run[0, 0]), int(run[0, -1]) + 1)
            found.append(Place(row, frames[begin].video, run, [], [span], False, tiles=end - begin))
    return found


def spans_of(
    ids: Sequence[int], columns: Tensor, text_after: bool = False
) -> tuple[list[Span], bool]:
    """The columns of each group with the text and the brackets that are its own.

    What stands between two groups is the closing bracket of the one, and the text (a time, a
    number) and the opening bracket of the other. The bracket is what all groups have alike behind
    them. The first group's text begins as that of the others does, or is as long as the second's.

    Args:
        ids: (L,) of a prompt. columns: (T, P) of the groups.
        text_after: the text stands behind its group, so that all is the other way round.

    Returns:
        T spans, which touch, and whether there is any text between the groups.
    """
    first, last = columns[:, 0].tolist(), columns[:, -1].tolist()
    bare = [(begin, end + 1) for begin, end in zip(first, last, strict=True)]
    between = [list(ids[a + 1 : b]) for a, b in zip(last, first[1:], strict=False)]
    if not any(between):
        return bare, False
    if text_after:
        mirrored = len(ids) - 1 - columns.flip(0, 1)
        spans, _ = spans_of(list(ids)[::-1], mirrored)
        return [(len(ids) - end, len(ids) - begin) for begin, end in reversed(spans)], True
    behind = list(ids[last[-1] + 1 :])
    closing = _common([*between, behind])
    own = [text[closing:] for text in between]  # of all groups but the first
    start = first[0] - len(own[0])
    alike = _common(own) if len(own) > 1 else 0
    if alike:
        begins = own[0][:alike]
        for column in range(first[0] - alike, max(first[0] - 32, 0) - 1, -1):
            if list(ids[column : column + alike]) == begins:
                start = column
                break
    ends = [end + 1 + closing for end in last]
    return list(zip([max(start, 0), *ends[:-1]], ends, strict=True)), True


def _common(texts: Sequence[Sequence[int]]) -> int:
    """How many ids all of these begin with alike."""
    shortest = min(len(text) for text in texts)
    for i in range(shortest):
        if len({text[i] for text in texts}) > 1:
            return i
    return shortest
