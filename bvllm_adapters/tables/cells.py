"""A cell of a row that must be a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bvllm_adapters.tables.media_paths import RowError


def text_cell(values: Mapping[str, Any], name: str) -> str:
    """The text of a column.

    Raises:
        RowError: there is none, it is no text, or no Unicode.
    """
    value = values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{name}: got {value!r:.80}, wanted a text")
    return unicode_cell(name, value)


def unicode_cell(name: str, value: str) -> str:
    """`value`, unless half a character is in it, which JSON can hold and no tokenizer reads."""
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RowError(f"{name}: got half a character, wanted Unicode")
    return value
