"""Settings of generate() that look at ids, shown those of the answer alone.

A prompt's visual placeholders say nothing, and how many there are is the budget's business.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class OfNewIds(LogitsProcessor):
    """A logits processor that sees no prompt.

    Args:
        inner: of transformers. length: ids of the prompts.
    """

    def __init__(self, inner: Any, length: int) -> None:
        self.inner, self.length = inner, length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        changed: Tensor = self.inner(input_ids[:, self.length :], scores)
        return changed


class StopsByNewIds(StoppingCriteria):
    """Stopping criteria that see no prompt. Args: as `OfNewIds`."""

    def __init__(self, inner: Any, length: int) -> None:
        self.inner, self.length = inner, length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return self.inner(input_ids[:, self.length :], scores, **kwargs)


class StreamsNewIds:
    """A streamer that is not told the prompt."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.told = inner, False

    def put(self, value: Tensor) -> None:
        if self.told:
            self.inner.put(value)
        self.told = True

    def end(self) -> None:
        self.inner.end()


def seeing_new_ids(settings: dict[str, Any], length: int) -> dict[str, Any]:
    """The settings with what a caller has given of these wrapped.

    Args:
        length: ids of the prompts, which stand before the answers.
    """
    out = dict(settings)
    for name, wrapped in (("logits_processor", OfNewIds), ("stopping_criteria", StopsByNewIds)):
        if out.get(name):
            out[name] = [wrapped(one, length) for one in out[name]]
    if out.get("streamer") is not None:
        out["streamer"] = StreamsNewIds(out["streamer"])
    return out
