"""How likely a model finds a given answer: it is made to say it, and its logits are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

# Plain greedy decoding; what a model's own generation_config would do to its logits is not read.
READ = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation of a prompt.

    Args:
        total: sum of the log-probabilities of its tokens, in float32. tokens: how many.
        greedy: whether each is what the model would have said itself.
    """

    total: float
    tokens: int
    greedy: bool

    @property
    def loss(self) -> float:
        """Mean of the negative log-probabilities, as a model's own loss."""
        return -self.total / self.tokens


class Saying(LogitsProcessor):
    """Makes generate() say these ids, row by row, whatever the model would.

    Any host that can generate can so be asked, in its own prompt format and in batches.

    Args:
        rows: ids of each prompt's continuation. end: id that a row goes on with behind them.
    """

    def __init__(self, rows: Sequence[Sequence[int]], end: int) -> None:
        self.rows, self.end, self.step = rows, end, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = [row[self.step] if self.step < len(row) else self.end for row in self.rows]
        self.step += 1
        forced = torch.full_like(scores, -torch.inf)
        at = torch.tensor(said, device=scores.device)[:, None]
        return forced.scatter(1, at, 0.0)


def settings_of(rows: Sequence[Sequence[int]], end: int) -> dict[str, Any]:
    """Settings of generate() that make it say these rows of ids and give the logits of each."""
    longest = max(map(len, rows))
    return {**READ, "max_new_tokens": longest, "logits_processor": [Saying(rows, end)]}


def likelihood_of(ids: Sequence[int], logits: Sequence[Tensor]) -> Likelihood:
    """Of what one prompt was made to say.

    Args:
        logits: of each step, (1, V).
    """
    steps = torch.stack([step[0].float() for step in logits[: len(ids)]])
    wanted = torch.tensor(ids, device=steps.device)
    each = steps.log_softmax(dim=-1).gather(1, wanted[:, None])
    return Likelihood(float(each.sum()), len(ids), bool((steps.argmax(dim=-1) == wanted).all()))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Ids of an answer; its place behind the prompt is the chat format's, so no space leads it.

    Raises:
        NotImplementedError: for a tokenizer of a host's own. ValueError: no words.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
    elif hasattr(tokenizer, "pieces"):  # LLaMA-VID's, which is SentencePiece itself
        ids = tokenizer.pieces.encode(text.strip())
    else:
        raise NotImplementedError(
            f"loglikelihood: got a {type(tokenizer).__name__}, wanted a tokenizer of transformers "
            "or SentencePiece: how an answer alone becomes ids is not known of this host's; use "
            "the task that generates"
        )
    if not ids:
        raise ValueError(f"continuation: got {text!r}, wanted words")
    return [int(i) for i in ids]


def end_of(tokenizer: Any) -> int:
    """An id to go on with behind a shorter row of a batch."""
    end = getattr(tokenizer, "eos_token_id", None)
    return 0 if end is None else int(end)
