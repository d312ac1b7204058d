"""What generate() shows and takes in the caller's ids, while it works on fewer.

Axes: B prompts, b sequences of each, L ids of the caller's prompt, L' of the compacted one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers import StoppingCriteriaList as Criteria
from transformers.generation.streamers import BaseStreamer

# Of transformers' own processors and criteria: what counts a prompt's ids.
_COUNTS = ("max_length", "min_length", "prompt_length_to_skip", "begin_index")


@dataclass(frozen=True, eq=False)
class AsGiven:
    """A batch of prompts as the caller gave it.

    Args:
        ids: (B, L). length: L'.
    """

    ids: Tensor
    length: int

    @property
    def shorter(self) -> int:
        return self.ids.shape[1] - self.length

    def sequences(self, ids: Tensor) -> Tensor:
        """(B b, L' + n) -> (B b, L + n): what was generated, behind the caller's ids."""
        prompts = self.ids.to(ids.device).repeat_interleave(len(ids) // len(self.ids), dim=0)
        return torch.cat([prompts, ids[:, self.length :]], dim=1)

    def arguments(self, given: dict[str, Any], own: Any) -> dict[str, Any]:
        """Arguments of generate() that look at ids, or count them, for the compacted prompts.

        Args:
            given: those of the call. own: the model's generation_config.
        """
        out = {**given, **self.lengths(given, own)}
        if given.get("streamer") is not None:
            out["streamer"] = _Streamer(given["streamer"], self)
        if given.get("logits_processor"):
            all_own = (self._looking(each, _Processor) for each in given["logits_processor"])
            out["logits_processor"] = LogitsProcessorList(all_own)
        if given.get("stopping_criteria"):
            criteria = (self._looking(each, _Criterion) for each in given["stopping_criteria"])
            out["stopping_criteria"] = Criteria(criteria)
        allowed = given.get("prefix_allowed_tokens_fn")
        if allowed is not None:

            def of_given(row: int, ids: Tensor) -> Any:
                new = ids[self.length :]
                return allowed(row, torch.cat([self.ids[row].to(ids.device), new]))

            out["prefix_allowed_tokens_fn"] = of_given
        return out

    def lengths(self, given: dict[str, Any], own: Any) -> dict[str, Any]:
        """`max_length` and `min_length`, which count the prompt's ids, of the compacted prompts.

        What the call says goes before its generation_config, and that before the model's own.

        Raises:
            ValueError: a max_length that has no room for an answer.
        """
        config = given.get("generation_config")
        out: dict[str, Any] = {}
        for name, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            sources = (given, {} if config is None else vars(config), vars(own))
            if any(source.get(instead) is not None for source in sources):
                continue  # which goes before it
            at = next((i for i, each in enumerate(sources) if each.get(name) is not None), None)
            if at is None:
                continue
            if name == "max_length" and sources[at][name] <= self.ids.shape[1]:
                raise ValueError(
                    f"max_length: got {sources[at][name]}, wanted more than the "
                    f"{self.ids.shape[1]} ids of the prompt, or max_new_tokens"
                )
            count = max(sources[at][name] - self.shorter, 0)
            if at == 0 or config is None:
                out[name] = count
            else:  # where it is, as generate() does not want both
                config = out["generation_config"] = copy.copy(config)
                setattr(config, name, count)
        return out

    def _looking(self, each: Any, wrapper: Callable[..., Any]) -> Any:
        """A processor or criterion that sees the caller's ids. transformers' own look for what
        they find in what the model reads; only what they count is of the caller's ids."""
        if not type(each).__module__.startswith("transformers."):
            return wrapper(each, self)
        twin = copy.copy(each)
        for name in _COUNTS:
            if isinstance(vars(each).get(name), int):
                setattr(twin, name, max(vars(each)[name] - self.shorter, 0))
        return twin


class _Processor(LogitsProcessor):
    def __init__(self, each: Any, given: AsGiven) -> None:
        self.each, self.given = each, given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        out: Tensor = self.each(self.given.sequences(input_ids), scores)
        return out


class _Criterion(StoppingCriteria):
    def __init__(self, each: Any, given: AsGiven) -> None:
        self.each, self.given = each, given

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.each(self.given.sequences(input_ids), scores, **kwargs)
        return out


class _Streamer(BaseStreamer):
    """The first that a streamer is given is the prompt."""

    def __init__(self, streamer: Any, given: AsGiven) -> None:
        self.streamer = streamer
        self.given: AsGiven | None = given

    def put(self, value: Tensor) -> None:
        given, self.given = self.given, None
        self.streamer.put(value if given is None else given.sequences(value))

    def end(self) -> None:
        self.streamer.end()


def at_given(logits: Tensor, columns: Tensor, length: int) -> Tensor:
    """(B, L', V) logits of the compacted prompts -> (B, L, V) over the caller's ids.

    Where an id has gone stand the logits of the last before it that is left, which predict what
    comes after both: labels of the caller's ids have the same loss beside either.

    Args:
        columns: (B, L') int64, where each id stood; -1 at padding. length: L.
    """
    columns = columns.to(logits.device)
    held = columns >= 0
    left = torch.zeros(len(columns), length, dtype=torch.long, device=logits.device)
    left.scatter_add_(1, columns.clamp(min=0), held.long())
    begins = held.int().argmax(dim=1, keepdim=True)
    at = begins + (left.cumsum(1) - 1).clamp(min=0)
    return logits[torch.arange(len(at), device=at.device)[:, None], at]


def names_of(signature: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their names, as a call of this signature, a method's, binds them.

    Raises:
        TypeError: as the call would.
    """
    if not args:
        return kwargs
    bound = signature.bind(None, *args, **kwargs)
    found: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        if signature.parameters[name].kind is signature.parameters[name].VAR_KEYWORD:
            found.update(value)
        else:
            found[name] = value
    return found
