"""A conversation's turns: as plain text, and as the messages of a chat template."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from bvllm_adapters.question import TAGS, without


def special_tokens(tokenizer: Any) -> set[str]:
    """What a tokenizer of transformers would read as more than text, if it stood in a question,
    tags of visual inputs among it: all must be left out at once, or one might form another."""
    added = tokenizer.added_tokens_decoder.values()
    found = {str(token) for token in added if token.special} | {*tokenizer.all_special_tokens}
    return (found | {*TAGS}) - {""}


def turns_of(
    question: str, history: Sequence[tuple[str, str]] | None, special: Collection[str]
) -> list[str]:
    """Questions and answers in turn, up to the question that is to be answered.

    Args:
        special: tokens of the chat format, that nobody's words may bring about.
    """
    said = [text for turn in history or () for text in turn]
    return [without(text, special).strip() for text in (*said, question)]


def messages(turns: Sequence[str], system: str | None = None) -> list[dict[str, str]]:
    """Turns of user and assistant, the user first, for a chat template."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
