"""Which of a video's placeholders each of its visual tokens stands at.

Axes: N visual tokens, T groups of a video (see `splits`), P placeholders of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor


def placed(frame: Tensor, place: Tensor, groups: int, each: int) -> tuple[Tensor, Tensor]:
    """The group, and the place in it, of the placeholder that each token stands at.

    A token stands where it comes from: at the place of its earliest member in its (main) group.
    Soft choices, as those of training, may have one main group, and then claim the same
    placeholders. Each token needs one of its own, and placeholders are filled in order. So what
    would stand at or before the token before it stands at the next placeholder, of the same group
    or else of the next one; and what would be pushed over the end stands as far before it as it
    must. Whole frames that differ, as evaluation chooses them, stand where they come from, always.

    Args:
        frame, place: (N,) int64, main groups that never decrease and places in them.
        groups, each: T and P; N is T P at most.

    Returns:
        (N,) int64 groups and places, no pair twice, in ascending order.

    Raises:
        ValueError: more tokens than placeholders, or a place that a group has not.
    """
    count = len(frame)
    check_room(int(place.max()) + 1 if count else 0, each)
    if count > groups * each:
        raise ValueError(
            f"tokens: got {count}, wanted {groups * each} at most, as the prompt has placeholders"
        )
    turn = torch.arange(count, device=frame.device)
    wanted = frame * each + place
    found = torch.cummax(wanted - turn, dim=0).values + turn
    found = torch.minimum(found, groups * each - count + turn)
    return found // each, found % each


def check_room(tokens_per_frame: int, each: int) -> None:
    """ValueError: a sampler makes more tokens of a frame than its prompt has placeholders for."""
    if tokens_per_frame > each:
        raise ValueError(
            f"tokens_per_frame: got {tokens_per_frame}, wanted {each} at most, as the prompt has "
            "placeholders of a frame of this size"
        )
