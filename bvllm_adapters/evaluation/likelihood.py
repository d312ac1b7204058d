"""How likely a model finds a text as its answer: multiple choice that needs no parsing.

The text is put into the model's mouth, token by token, and the probability that it gave each token
is read off. That goes through generate() as any answer does, with a logits processor that leaves no
other token, so it is the same for every host, in its own prompt format and in batches.
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
        total: sum of the logarithms of its tokens' probabilities, in float32. tokens: how many.
        letters: of the text, by which lm-evaluation-harness divides for its `acc_norm`.
        greedy: whether each token is what the model would have said itself.
    """

    total: float
    tokens: int
    letters: int
    greedy: bool

    @property
    def of_a_letter(self) -> float:
        return self.total / max(self.letters, 1)

    @property
    def loss(self) -> float:
        """Mean of the tokens' negative logarithms, as a model's own loss."""
        return -self.total / self.tokens


class _Saying(LogitsProcessor):
    """Leaves of all tokens the next of a given text, in each row; of one that has ended, its last.

    It counts its calls, as hosts differ in whether the ids it is handed hold the prompt's.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows, self.step = rows, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = [row[min(self.step, len(row) - 1)] for row in self.rows]
        self.step += 1
        at = torch.tensor(said, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, at, 0.0)


def saying(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Settings of generate() that make it say these rows of ids and give the logits of each step.

    They are for one call. Logits are the model's own, before anything its settings do to them.
    """
    return {
        "logits_processor": [_Saying(rows)],
        "max_new_tokens": max(map(len, rows)),
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "output_logits": True,
        "return_dict_in_generate": True,
    }


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
        rows = [
            token_ids(video.processor.tokenizer, text)
            for (video, _), text in zip(items[here], texts[here], strict=True)
        ]
        answers = ask_batch(
            items[here],
            batch_size=batch_size,
            query=None if queries is None else list(queries[here]),
            **saying(rows),
            **settings,
        )
        for answer, ids, text in zip(answers, rows, texts[here], strict=True):
            logits = getattr(answer.generated, "logits", None)
            found.append((answer, likelihood_of(ids, logits, text)))
    return found


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Of a text alone, by a host's tokenizer.

    Raises:
        ValueError: there are none, or special ones among them.
    """
    if hasattr(tokenizer, "encode"):
        ids = [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]
        special = {*tokenizer.all_special_ids}
    elif callable(tokenizer):  # a host's own kind, which begins with a token of its own
        ids = [int(i) for i in tokenizer(text)]
        special = {*getattr(tokenizer, "special", {}).values()}
        ids = ids[ids[:1] == [getattr(tokenizer, "bos_token_id", None)] :]
    else:
        raise ValueError(
            f"likelihood: got {type(tokenizer).__name__} as the tokenizer of the host's processor, "
            "wanted one that makes ids of a text, or answers by letter"
        )
    if not ids or special & {*ids}:
        raise ValueError(f"likelihood: got {text!r:.80}, wanted a text without special tokens")
    return ids


def likelihood_of(ids: Sequence[int], logits: Sequence[Tensor] | None, text: str) -> Likelihood:
    """Of what one prompt was made to say.

    Args:
        ids: of `text`. logits: of each step, (1, V).

    Raises:
        ValueError: there are no logits, fewer than ids, or NaN among them.
    """
    if logits is None or len(logits) < len(ids):
        raise ValueError(
            "likelihood: got a host whose generate() does not say how likely each token was, "
            "wanted answers by letter"
        )
    steps = torch.stack([logits[step][0] for step in range(len(ids))]).float()
    wanted = torch.tensor(ids, device=steps.device)
    total = float(steps.log_softmax(dim=-1).gather(1, wanted[:, None]).sum())
    if total != total:
        raise ValueError("likelihood: got NaN of the model, wanted numbers")
    return Likelihood(total, len(ids), len(text), bool((steps.argmax(dim=-1) == wanted).all()))
