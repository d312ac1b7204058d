"""Where an answer ends, besides where its model ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class Stops(StoppingCriteria):
    """Ends a row of a batch once it has said one of these.

    Its words are looked at as they are decoded: transformers' own `stop_strings` go by the texts of
    single ids, which not every tokenizer's are made of.

    Args:
        tokenizer: of the host. until: texts, none of them empty.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str]) -> None:
        self.tokenizer, self.until = tokenizer, until
        # An id is a byte at least: what began before was seen at an earlier step.
        self.tail = 1 + max(len(text.encode()) for text in until)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """(B, L) new ids -> (B,) whether each is done."""
        said = [words(self.tokenizer, row) for row in input_ids[:, -self.tail :]]
        done = [any(stop in text for stop in self.until) for text in said]
        return torch.tensor(done, device=input_ids.device)


def words(tokenizer: Any, ids: Tensor) -> str:
    """The text of (L,) ids, without special tokens."""
    batch = getattr(
        tokenizer, "batch_decode", None
    )  # LLaMA-VID's own has none, and leaves them out
    if batch is None:
        return str(tokenizer.decode(ids))
    return str(batch(ids[None], skip_special_tokens=True)[0])
