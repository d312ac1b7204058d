"""A conversation as ids in the host's chat format, and which of them are to be learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.question import IGNORED_LABEL
from bvllm_adapters.training.conversations import Row, RowError
from bvllm_adapters.training.host import Expanded, HostTraining, Visual


def tokenized(row: Row, host: HostTraining, max_length: int) -> tuple[Tensor, Tensor]:
    """(L,) input_ids and (L,) labels of a row: each answer and the token that ends it.

    What an answer is begins where the ids of the conversation up to it leave those of the
    conversation with it, so it is split from its question as a model that answers would have it.

    Args:
        max_length: ids at most, before visual tokens come in; what is longer loses its end.

    Raises:
        RowError: where the chat format changes what was said before or has no place for a system
            turn, a placeholder would be cut off, or nothing is left to learn.
    """
    ids, labels = _learned(row, host, host.ids)
    found = sum(i in host.placeholders for i in ids)
    if found != len(row.media):
        raise RowError(f"got {found} placeholders in the prompt, wanted {len(row.media)} as media")
    ids, labels = ids[:max_length], labels[:max_length]
    left = sum(i in host.placeholders for i in ids)
    if left < found:
        raise RowError(f"max_length: got {max_length}, which cuts off an image or video")
    if all(label == IGNORED_LABEL for label in labels):
        raise RowError(f"max_length: got {max_length}, which leaves no answer to learn")
    return torch.tensor(ids), torch.tensor(labels)


def expanded(
    row: Row, host: HostTraining, visuals: Sequence[Visual], max_length: int
) -> tuple[Tensor, Tensor, Expanded]:
    """`tokenized`, with all placeholders of a host whose prompts have one for each visual token,
    and what goes along with the ids that are left.

    Args:
        visuals: the row's media. max_length: ids at most, of which each medium counts as one.
    """
    ids, labels = tokenized(row, host, max_length)
    of_prompt: Any = getattr(host, "expanded", None)
    if of_prompt is None or not visuals:
        return ids, labels, Expanded([])
    made: list[Expanded] = []

    def ids_of(prompt: str) -> list[int]:
        made.append(of_prompt(prompt, visuals))
        return made[-1].ids

    cut = len(_learned(row, host, host.ids)[0]) - len(ids)
    long, learned = _learned(row, host, ids_of)
    length = len(long) - cut
    of_ids = {name: value[:length] for name, value in made[-1].of_ids.items()}
    more = replace(made[-1], of_ids=of_ids)
    return torch.tensor(long[:length]), torch.tensor(learned[:length]), more


def _learned(
    row: Row, host: HostTraining, ids_of: Callable[[str], list[int]]
) -> tuple[list[int], list[int]]:
    """The ids of a row, as `ids_of` gives those of a prompt, and its labels."""
    ids: list[int] = []
    labels: list[int] = []
    for end in range(2, len(row.turns) + 1, 2):
        asked = ids_of(_prompt(row, end - 1, host))
        answered = ids_of(_prompt(row, end, host))
        begin = _shared(asked, answered)
        if _shared(ids, answered) < len(ids) or begin < len(ids):
            raise RowError("the chat format writes earlier turns differently once there are more")
        labels += [IGNORED_LABEL] * (begin - len(labels))
        labels += _ended(answered[begin:], host)
        ids = answered
    return ids, labels


def _prompt(row: Row, turns: int, host: HostTraining) -> str:
    """The first turns of a row, behind what the system says in it."""
    if row.system is None:
        return host.prompt(row.turns[:turns])
    try:
        text = host.prompt(row.turns[:turns], system=row.system)
    except Exception as error:  # whatever a chat template raises
        raise RowError(
            f"conversations[0]: the chat format refuses a system turn: {error}"
        ) from error
    if row.system not in text:
        raise RowError("conversations[0]: the chat format has no place for a system turn")
    return text


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two prompts begin with in common."""
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


def _ended(answer: list[int], host: HostTraining) -> list[int]:
    """The labels of an answer: itself up to the last token that ends it, nothing behind."""
    ends = [i for i, token in enumerate(answer) if token in host.end_ids]
    kept = ends[-1] + 1 if ends else len(answer)
    return answer[:kept] + [IGNORED_LABEL] * (len(answer) - kept)
