"""The question that a prompt asks, read from its ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.context import asked
from bvllm_adapters.hosts.find import processor_of

IGNORED = -100  # of labels


def questions_of(model: Any, inputs: Mapping[str, Any], tokenizer: BalancedTokenizer) -> list[str]:
    """What each prompt of a batch asks, where anything reads it; else nothing.

    What `bvllm_adapters.question.asking` says goes before what the ids say.

    Raises:
        ValueError: the ids cannot be read, as the model's tokenizer is not known.
    """
    ids: Tensor = inputs["input_ids"]
    said = [asked(row) for row in range(len(ids))]
    if not reads_question(tokenizer) or all(text is not None for text in said):
        return [text or "" for text in said]
    return [
        question_of(model, row, labels) if text is None else text
        for text, row, labels in zip(
            said, ids.tolist(), inputs.get("labels", [None] * len(ids)), strict=True
        )
    ]


def reads_question(tokenizer: BalancedTokenizer) -> bool:
    """Whether any stage makes something of the question."""
    if tokenizer.spatial_sampler is not None or not tokenizer.chooses_untrained:
        return True
    return bool(getattr(tokenizer.frame_selector, "reads_question", True))


def question_of(model: Any, ids: Sequence[int], labels: Tensor | None) -> str:
    """The text behind a prompt's last visual input or, if there is none, the last before it."""
    words = text_tokenizer(model)
    special = set(words.all_special_ids) | set(words.added_tokens_decoder)
    if labels is not None:  # answers never reach the question
        ids = [token for token, label in zip(ids, labels.tolist(), strict=True) if label == IGNORED]
    parts: list[list[int]] = [[]]
    for token in ids:
        if token in special:
            parts.append([])
        else:
            parts[-1].append(token)
    visual = max((i for i, part in enumerate(parts) if not part), default=0)
    texts = [words.decode(part).strip() for part in parts]
    behind = [text for text in texts[visual:] if text]
    longest: str = max(behind or [text for text in texts if text] or [""], key=len)
    return longest


def text_tokenizer(model: Any) -> Any:
    """The tokenizer that lies beside the model's checkpoint."""
    try:
        processor = processor_of(model)
    except ValueError as error:
        raise ValueError(
            "question: the prompt's ids cannot be read without the model's tokenizer, wanted "
            "bvllm_adapters.question.asking(...) around the call, or a model of a folder that "
            "holds one"
        ) from error
    return getattr(processor, "tokenizer", processor)
