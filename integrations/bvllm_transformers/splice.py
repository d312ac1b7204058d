"""The arguments of a prompt with fewer visual tokens than its processor made room for.

Axes: B prompts, L ids, N visual tokens of one input, D width of the language model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bvllm_transformers.placeholders import Place
from bvllm_transformers.splits import Inputs

IGNORED = -100  # of labels


@dataclass(frozen=True, eq=False)
class Filled:
    """A visual input with the tokens that the language model shall read of it.

    Args:
        place: where it stands. key: "video" or "image", of `mm_encoder_outputs`.
        tokens: (N, D (1 + levels)) in time order, those of the tail behind them.
        columns: (N,) int64 of the ids, ascending: the placeholders that hold them.
        as_tensor: whether the model takes its visual tokens as one tensor. more: what else it
            reads of its encoder's output.
    """

    place: Place
    key: str
    tokens: Tensor
    columns: Tensor
    as_tensor: bool
    more: Mapping[str, Any] | None = None


def kept_groups(filled: Filled) -> list[int]:
    """Groups of which a token is left."""
    held = torch.isin(filled.place.columns, filled.columns.cpu()).any(dim=1)
    return [int(group) for group in held.nonzero().squeeze(1)]


def kept_columns(shape: torch.Size, filled: Sequence[Filled]) -> tuple[Tensor, Tensor]:
    """(B, L) bool twice: what is left of the prompts once whole groups have gone with their text,
    and once the tokens that were merged away have gone too."""
    groups, tokens = (torch.ones(shape, dtype=torch.bool) for _ in range(2))
    for each in filled:
        place = each.place
        if place.own_text:
            held = set(kept_groups(each))
            for group, (begin, end) in enumerate(place.spans):
                if group not in held:
                    groups[place.row, begin:end] = False
                    tokens[place.row, begin:end] = False
        tokens[place.row, place.columns.flatten()] = False
        tokens[place.row, place.tail] = False
        tokens[place.row, each.columns.cpu()] = True
    return groups, tokens


def compacted(values: Tensor, kept: Tensor, left: bool, fill: Any) -> Tensor:
    """(B, L) -> (B, L') with the kept columns alone, padded on one side to the longest row."""
    rows = [row[mask] for row, mask in zip(values, kept.to(values.device), strict=True)]
    width = max(len(row) for row in rows)
    out = values.new_full((len(rows), width), fill)
    for new, row in zip(out, rows, strict=True):
        new[width - len(row) :] = row if left else new[width - len(row) :]
        if not left:
            new[: len(row)] = row
    return out


def padding_of(mask: Tensor) -> tuple[Tensor, bool]:
    """(B, L) attention mask -> (B, L) bool, True where a row is padded, and whether on the left."""
    seen = mask.bool()
    before = seen.cumsum(1) == 0
    after = seen.flip(1).cumsum(1).flip(1) == 0
    left = bool(before.any()) or not bool(after.any())
    return before | after, left


@dataclass(frozen=True)
class Positions:
    """Positions of three axes, by the model's own `get_rope_index`.

    It is asked about the prompts without the groups that have gone with their text: what is left
    stands as if only these groups had been given. Groups without a text of their own keep the
    positions they have among all, by which alone the model knows their times.

    Args:
        of: the method. grids: arguments that count groups, and what they are of kept groups.
        names: its arguments, by the names that forward() has for them where these differ.
    """

    of: Any
    grids: dict[str, Any]
    names: dict[str, str]

    def __call__(self, inputs: Inputs, mask: Tensor, groups: Tensor, left: bool) -> Tensor:
        ids = inputs["input_ids"]
        own = {}
        for name in inspect.signature(self.of).parameters:
            given = self.names.get(name, name)
            value = self.grids.get(given, inputs.get(given))
            if isinstance(value, Tensor) and value.shape == ids.shape:
                value = compacted(value, groups, left, 0)
            if value is not None and name != "kwargs":
                own[name] = value
        own["attention_mask"] = compacted(mask, groups, left, 0)
        found: Tensor = self.of(**own)[0]
        out = found.new_zeros(3, *ids.shape)
        where = groups.to(found.device)
        out[:, where] = found[-3:][:, own["attention_mask"].bool()]
        return out


def spliced(
    inputs: Inputs,
    filled: Sequence[Filled],
    *,
    drop: Sequence[str],
    positions: Positions | None,
    pad_id: int = 0,
) -> dict[str, Any]:
    """The arguments of forward() or generate() with the kept columns alone, without pixels.

    Args:
        inputs: the caller's, of a batch. drop: arguments of the encoders, which go.
        positions: of models whose positions have three axes; None: they count the ids.
        pad_id: of ids at padding.
    """
    ids: Tensor = inputs["input_ids"]
    given = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if given is None else given
    padded, left = padding_of(mask.cpu())
    groups, tokens = (kept & ~padded for kept in kept_columns(ids.shape, filled))
    out: dict[str, Any] = {name: value for name, value in inputs.items() if name not in drop}
    out["attention_mask"] = mask
    fills = {"input_ids": pad_id, "labels": IGNORED}
    for name, value in out.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            out[name] = compacted(value, tokens, left, fills.get(name, 0))
    if given is None and bool(out["attention_mask"].all()):
        del out["attention_mask"]  # nothing is padded, as before
    if positions is not None:
        found = positions(inputs, mask, groups, left)  # (3, B, L)
        visual = [compacted(axis, tokens, left, 0) for axis in found]
        count = compacted(tokens.long().cumsum(1).to(ids.device) - 1, tokens, left, 0)
        out["position_ids"] = torch.stack([count, *visual])
        out.pop("mm_token_type_ids", None)
    return out
