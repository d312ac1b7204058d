"""How likely a model finds each option as its answer: multiple choice that needs no parsing.

The options are not in the prompt; each is put into the model's mouth, token by token, and the
probability that it gave each token is read off. That goes through generate() as any answer does,
with a logits processor that leaves no other token, so it is the same for every host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from bvllm_adapters.conversation import Answer, OpenVideo, ask_batch


@dataclass(frozen=True)
class Likelihood:
    """Of one text as the answer.

    Args:
        total: sum of the logarithms of its tokens' probabilities. tokens: how many there are.
        letters: of the text, by which lm-evaluation-harness divides for its `acc_norm`.
    """

    total: float
    tokens: int
    letters: int

    @property
    def of_a_letter(self) -> float:
        return self.total / max(self.letters, 1)


class _Forced(LogitsProcessor):
    """Leaves of all tokens the next of a given text, in each row; of one that has ended, its last.

    Args:
        ids: of each row.
    """

    def __init__(self, ids: Sequence[Sequence[int]]) -> None:
        self.ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1]
        forced = [row[min(step, len(row) - 1)] for row in self.ids]
        only = torch.full_like(scores, -torch.inf)
        only[torch.arange(len(forced)), torch.tensor(forced)] = 0.0
        return only


def likelihoods(
    items: Sequence[tuple[OpenVideo, str]],
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    queries: Sequence[str | None] | None = None,
    **settings: Any,
) -> list[tuple[Answer, Likelihood]]:
    """How likely each text is as the answer to its question.

    Args:
        items: see `ask_batch`. texts: one for each. queries: see `ask_batch`.
        settings: max_tokens and system.

    Raises:
        ValueError: for a text without tokens, or one with a special token; a host whose tokenizer
            or generate() does not say what this needs; a model that gives NaN.
    """
    found = []
    for begin in range(0, len(items), batch_size):
        here = slice(begin, begin + batch_size)
        ids = [
            token_ids(video, text)
            for (video, _), text in zip(items[here], texts[here], strict=True)
        ]
        answers = ask_batch(
            items[here],
            batch_size=batch_size,
            query=None if queries is None else list(queries[here]),
            logits_processor=[_Forced(ids)],
            max_new_tokens=max(map(len, ids)),
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            output_logits=True,
            **settings,
        )
        for (video, _), answer, row, text in zip(
            items[here], answers, ids, texts[here], strict=True
        ):
            found.append((answer, _read(video, answer, row, text)))
    return found


def token_ids(video: OpenVideo, text: str) -> list[int]:
    """Of a text alone, by the tokenizer of the video's host.

    Raises:
        ValueError: there are none, or special ones among them.
    """
    tokenizer: Any = getattr(video.processor, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"likelihood: got {type(video.host).__name__}, whose processor has no tokenizer, "
            "wanted by='letter'"
        )
    if hasattr(tokenizer, "encode"):
        ids = [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]
        special = {*tokenizer.all_special_ids}
    else:  # a host's own kind, which begins with a token of its own
        ids = [int(i) for i in tokenizer(text)]
        special = {*getattr(tokenizer, "special", {}).values()}
        ids = ids[ids[:1] == [getattr(tokenizer, "bos_token_id", None)] :]
    if not ids or special & {*ids}:
        raise ValueError(f"options: got {text!r:.80}, wanted a text without special tokens")
    return ids


def _read(video: OpenVideo, answer: Answer, ids: Sequence[int], text: str) -> Likelihood:
    logits = getattr(answer.generated, "logits", None)
    if logits is None or len(logits) < len(ids):
        raise ValueError(
            f"likelihood: got {type(video.host).__name__}, whose generate() does not say how "
            "likely each token was, wanted by='letter'"
        )
    steps = torch.stack([logits[step][0] for step in range(len(ids))]).float()
    wanted = torch.tensor(ids, device=steps.device)[:, None]
    total = float(steps.log_softmax(-1).gather(1, wanted).sum())
    if total != total:
        raise ValueError("likelihood: got NaN of the model, wanted numbers")
    return Likelihood(total, len(ids), len(text))
