"""A wrapped model's forward() and generate(): the same arguments, fewer visual tokens."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.hosts.language_model import CACHE_NAMES as CACHES
from bvllm_adapters.hosts.trainers import COUNTED
from bvllm_transformers.arguments import check_cache, mask_of_padding
from bvllm_transformers.as_given import AsGiven, at_given, names_of
from bvllm_transformers.budget import budgeted, has_pixels
from bvllm_transformers.own_generate import as_embeddings, is_own

# Beside the ids, so that it is compacted as they are: where each stood in the caller's prompt.
COLUMNS = "_columns"
_COMPACTED = "_bvllm_compacted"  # on a cache: it holds fewer ids than the caller's prompt


class Budgeted:
    """Mixin of a wrapped model's class."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Each class gets methods with the arguments of those that they stand for, by which
        transformers knows what a model takes."""
        super().__init_subclass__(**kwargs)
        for name, call in (("forward", _forward), ("generate", _generate)):
            setattr(cls, name, _instead(_next(cls, name), call))


def _next(cls: type, name: str) -> Any:
    """The method that a subclass of Budgeted overrides."""
    after = cls.__mro__[cls.__mro__.index(Budgeted) + 1 :]
    return next(parent.__dict__[name] for parent in after if name in parent.__dict__)


def _instead(original: Any, call: Callable[..., Any]) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = names_of(signature, args, kwargs)
        _check_caches(given)
        if not has_pixels(self, given):
            return original(self, *args, **kwargs)
        return call(self, original, given)

    return method


def _forward(model: Any, original: Any, given: dict[str, Any]) -> Any:
    """Modifications:
    - A prompt with pixels is compacted to the budget: ids, mask, labels, positions; what comes out
      is of the compacted prompt.
    - But logits are over the caller's ids where they are held beside labels of these: in
      evaluation with labels, in training without, and where a Trainer has called.
    """
    made, columns = _budgeted(model, given)
    if columns is None:
        return original(model, **made)
    logits_to_keep = given.get("logits_to_keep")
    if isinstance(logits_to_keep, Tensor) and made["input_ids"].shape != given["input_ids"].shape:
        raise ValueError(
            "logits_to_keep: got indices of ids, some of which have gone, wanted a number of the "
            "last ones"
        )
    out = _run(original, model, made)
    if hasattr(out, "logits") and not logits_to_keep and _beside_labels(model, given):
        out.logits = at_given(out.logits, columns, given["input_ids"].shape[1])
    return out


@torch.no_grad()
def _generate(model: Any, original: Any, given: dict[str, Any]) -> Any:
    """Modifications:
    - A prompt with pixels is compacted to the budget; the sequences that come back begin with
      the caller's ids. Hidden states and attentions are of the compacted prompt.
    - A streamer, criteria and processors of the caller's own see the caller's ids.
    - `max_length` and `min_length` count the caller's ids.
    """
    given = dict(given)
    ids = given.pop("inputs", None)
    if ids is not None:
        if given.get("input_ids") is not None:
            raise ValueError("inputs: got them beside input_ids, wanted one of them")
        given["input_ids"] = ids
    if given.get("attention_mask") is None and isinstance(given.get("input_ids"), Tensor):
        given.update(mask_of_padding(model, given))
    made, columns = _budgeted(model, given)
    if columns is None:
        return original(model, **made)
    as_given = AsGiven(given["input_ids"], made["input_ids"].shape[1])
    if is_own(original):
        original, model, made = type(model.language_model).generate, *as_embeddings(model, made)
    out = _run(original, model, as_given.arguments(made, model.generation_config))
    if isinstance(out, Tensor):
        return as_given.sequences(out)
    out.sequences = as_given.sequences(out.sequences)
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _budgeted(model: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """The arguments that keep the budget, and (B, L') where each id stood, -1 at padding; None:
    nothing has gone, and the arguments are the caller's own."""
    ids = given.get("input_ids")
    beside: dict[str, Any] = {}
    if isinstance(ids, Tensor) and ids.dim() == 2:
        columns = torch.arange(ids.shape[1], device=ids.device) + 1  # padding is 0
        beside[COLUMNS] = columns.expand_as(ids)
    made = budgeted(model, {**given, **beside})
    columns = made.pop(COLUMNS) - 1
    return made, columns if "mm_encoder_outputs" in made else None


def _beside_labels(model: Any, given: Mapping[str, Any]) -> bool:
    labels = given.get("labels") is not None
    return labels != model.training or (COUNTED in given and not model.training)


def _run(original: Any, model: Any, made: dict[str, Any]) -> Any:
    """Caches, the caller's own too, hold a compacted prompt afterwards, whatever is raised."""
    try:
        out = original(model, **made)
        _mark(out)
    finally:
        _mark([made.get(name) for name in CACHES])
    return out


def _mark(out: Any) -> None:
    """Caches among outputs hold fewer ids than the caller's prompt."""
    found: Sequence[Any] = ()
    if isinstance(out, Mapping):
        found = [out[name] for name in set(out.keys()) & set(CACHES)]
    elif isinstance(out, tuple | list):
        found = out
    for each in found:
        if hasattr(each, "get_seq_length"):
            setattr(each, _COMPACTED, True)


def _check_caches(given: Mapping[str, Any]) -> None:
    """ValueError for a cache of a compacted prompt, in which the caller's ids have no place."""
    for name in CACHES:
        cache = given.get(name)
        if not getattr(cache, _COMPACTED, False):
            continue
        if check_cache(name, cache):
            raise ValueError(
                f"{name}: got that of a prompt whose visual tokens were cut to the budget, wanted "
                "none: give the whole conversation with its pixels, or use bvllm.open_video"
            )
        setattr(cache, _COMPACTED, False)  # it was emptied
