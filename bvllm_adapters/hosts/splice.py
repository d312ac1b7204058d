"""Visual tokens into the place of their placeholder: pure functions on ids, mask and labels.

Nothing else in this library pads. Axes: B prompts, L ids of the longest, N visual tokens of one
input, S length after splicing, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bvllm_adapters.question import IGNORED_LABEL

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class SplicedPrompts:
    """Prompts as a language model takes them.

    Args:
        inputs_embeds: (B, S, D), zeros at padding. attention_mask: (B, S), 1 where a row has a
            token, in the dtype of the mask that came in (int64 if none did).
        position_ids: (B, S) int64, counting each row's tokens from 0; 0 at padding.
        labels: (B, S) int64, -100 at visual tokens and padding; None where none came in.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor | None


def placeholder_rows(
    input_ids: Tensor, placeholders: Collection[int], attention_mask: Tensor | None = None
) -> list[int]:
    """The row of each placeholder in (B, L) ids, in reading order: whose visual input is whose."""
    return _is_placeholder(input_ids, placeholders, attention_mask).nonzero()[:, 0].tolist()


_watched: ContextVar[list[Tensor] | None] = ContextVar("bvllm_places", default=None)


@contextmanager
def places_of_ids() -> Iterator[list[Tensor]]:
    """Where ids have gone: each `splice` inside, in this thread, adds its (B, L) int64 places.

    An id's place is in [0, S); that of a placeholder is its last visual token's or, if it has
    none, that of what stands before it; of padding, any.
    """
    places: list[Tensor] = []
    token = _watched.set(places)
    try:
        yield places
    finally:
        _watched.reset(token)


def splice(
    input_ids: Tensor,
    embed: Callable[[Tensor], Tensor],
    visual: Sequence[Tensor],
    placeholders: Collection[int],
    *,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    padding_side: PaddingSide = "right",
) -> SplicedPrompts:
    """Replace each placeholder by its visual tokens, row by row, and pad anew.

    Args:
        input_ids: (B, L) int64. embed: ids -> embeddings (..., D), never asked for placeholders.
        visual: (N, D) for each placeholder in reading order, row by row; N may be 0.
        placeholders: ids that stand for an image or a video.
        attention_mask: (B, L), zero at padding, on either side; None: no padding.
        labels: (B, L), -100 where there is nothing to learn.
        padding_side: of the result.

    Raises:
        ValueError: when the placeholders are more or fewer than the visual inputs, or shapes
            disagree.
    """
    for name, value in (("attention_mask", attention_mask), ("labels", labels)):
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}, wanted {tuple(input_ids.shape)}"
            )
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side: got {padding_side!r}, wanted 'left' or 'right'")
    is_visual = _is_placeholder(input_ids, placeholders, attention_mask)
    if int(is_visual.sum()) != len(visual):
        raise ValueError(
            f"visual: got {len(visual)} inputs, wanted {int(is_visual.sum())}, "
            "the number of placeholders in input_ids"
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    # Neither placeholders nor padding need be words: look up any other id in their place.
    no_word = is_visual | (input_ids < 0) | ~attention_mask.bool()
    embedded = embed(input_ids.masked_fill(no_word, 0))
    inputs = iter(visual)
    rows, row_labels = [], []
    for row, mask in enumerate(attention_mask.bool()):
        pieces = [embedded.new_zeros(0, embedded.shape[2])]
        label_pieces = [input_ids.new_zeros(0)]
        begin = 0
        for place in [*is_visual[row].nonzero().squeeze(1).tolist(), len(mask)]:
            text = torch.arange(begin, place, device=mask.device)
            text = text[mask[text]]
            pieces.append(embedded[row, text])
            if labels is not None:
                label_pieces.append(labels[row, text])
            if place < len(mask):
                tokens = next(inputs)
                pieces.append(tokens.to(embedded))
                label_pieces.append(input_ids.new_full((len(tokens),), IGNORED_LABEL))
            begin = place + 1
        rows.append(torch.cat(pieces))
        row_labels.append(torch.cat(label_pieces))

    lengths = [len(row) for row in rows]
    spliced_mask = _pad([attention_mask.new_ones(n) for n in lengths], 0, padding_side)
    watched = _watched.get()
    if watched is not None:
        count = attention_mask.bool().long()
        count[is_visual] = count.new_tensor([len(tokens) for tokens in visual])
        places = count.cumsum(dim=1) - 1
        if padding_side == "left":
            places += spliced_mask.shape[1] - count.sum(dim=1, keepdim=True)
        watched.append(places.clamp_min(0))
    return SplicedPrompts(
        inputs_embeds=_pad(rows, 0.0, padding_side),
        attention_mask=spliced_mask,
        position_ids=(spliced_mask.long().cumsum(dim=1) - 1).clamp_min(0),
        labels=None if labels is None else _pad(row_labels, IGNORED_LABEL, padding_side),
    )


def left_padded(mask: Tensor | None, embeds: Tensor) -> tuple[Tensor | None, Tensor]:
    """All padding moved to the left, so that what is generated follows the prompt.

    Args:
        mask: (B, S), zero at padding; None: no padding. embeds: (B, S, D).
    """
    if mask is None or bool(mask[:, -1].all()):
        return mask, embeds
    order = mask.long().argsort(dim=1, stable=True)
    return mask.gather(1, order), embeds.gather(1, order[..., None].expand_as(embeds))


def _is_placeholder(
    input_ids: Tensor, placeholders: Collection[int], attention_mask: Tensor | None
) -> Tensor:
    found = torch.isin(input_ids, torch.tensor(sorted(placeholders), device=input_ids.device))
    return found if attention_mask is None else found & attention_mask.bool()


def _pad(rows: Sequence[Tensor], value: float, side: PaddingSide) -> Tensor:
    if side == "left":  # torch compiles and counts its own `padding_side` only in later versions
        return _pad([row.flip(0) for row in rows], value, "right").flip(1)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
