"""A wrapped model's forward() and generate(): the same arguments, fewer visual tokens."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from bvllm_transformers.budget import budgeted, has_pixels
from bvllm_transformers.own_generate import as_embeddings, generates_itself

_generating: ContextVar[bool] = ContextVar("generating", default=False)
_COMPACTED = "_bvllm_compacted"  # on a cache: it holds fewer ids than the caller's prompt


class Budgeted:
    """Mixin of a wrapped model's class."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Each class gets a forward() with the arguments of the one that it stands for, by which
        generate() and Trainer know what the model takes."""
        super().__init_subclass__(**kwargs)
        original = _next(cls, "forward")

        @functools.wraps(original)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            """Modifications:
            - A prompt with pixels is compacted to the budget: ids, mask, labels, positions; what
              comes out is of the compacted prompt.
            """
            return _forward(self, original, args, kwargs)

        cls.forward = forward  # type: ignore[attr-defined]

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Modifications:
        - A prompt with pixels is compacted to the budget; the sequences that come back begin with
          the caller's ids.
        - `max_length` and `min_length` count the caller's ids.
        """
        parent: Callable[..., Any] = super().generate  # type: ignore[misc]
        if inputs is not None:
            if kwargs.get("input_ids") is not None:
                raise ValueError("input_ids: got them twice, wanted inputs or input_ids")
            kwargs["input_ids"] = inputs
        _check_cache(kwargs)
        if not has_pixels(self, kwargs):
            ids = kwargs.pop("input_ids", None)
            return parent(ids, *args, **kwargs)
        before: Tensor = kwargs["input_ids"]
        made = budgeted(self, kwargs)
        after: Tensor = made["input_ids"]
        if generates_itself(self) and "mm_encoder_outputs" in made:
            parent, made = self.language_model.generate, as_embeddings(self, made)  # type: ignore[attr-defined]
        shorter = before.shape[1] - after.shape[1]
        _shorten(made, args, shorter)
        with _inside(), _rope_deltas(self):
            out = parent(None, *args, **made)
        if isinstance(out, Tensor):
            return _as_given(out, before, after)
        out.sequences = _as_given(out.sequences, before, after)
        if shorter:
            _mark(out)
        return out


def _next(cls: type, name: str) -> Any:
    """The method that a subclass of Budgeted overrides."""
    after = cls.__mro__[cls.__mro__.index(Budgeted) + 1 :]
    return next(parent.__dict__[name] for parent in after if name in parent.__dict__)


def _forward(model: Any, original: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if not _generating.get():
        _check_cache(kwargs)
    names = list(inspect.signature(original).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    if not has_pixels(model, given):
        return original(model, *args, **kwargs)
    made = budgeted(model, given)
    with _rope_deltas(model):
        out = original(model, **made)
    if made["input_ids"].shape != given["input_ids"].shape:
        _mark(out)
    return out


@contextmanager
def _inside() -> Iterator[None]:
    token = _generating.set(True)
    try:
        yield
    finally:
        _generating.reset(token)


@contextmanager
def _rope_deltas(model: Any) -> Iterator[None]:
    """A model keeps how far its last prompt's positions ran ahead of its ids, for a next call that
    names none. Ours do, so that it is none of the next prompt's business."""
    base = model.base_model
    before = copy.copy(getattr(base, "rope_deltas", None))
    try:
        yield
    finally:
        if hasattr(base, "rope_deltas"):
            base.rope_deltas = before


def _as_given(sequences: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The caller's ids with what was generated behind the compacted ones."""
    each = len(sequences) // len(before)
    prompts = before.to(sequences.device).repeat_interleave(each, dim=0)
    return torch.cat([prompts, sequences[:, after.shape[1] :]], dim=1)


def _shorten(made: dict[str, Any], args: Sequence[Any], shorter: int) -> None:
    """Lengths that count the prompt, less what has gone of it."""
    if args:
        raise TypeError("generate: got positional settings, wanted them by name")
    config = made.get("generation_config")
    for name in ("max_length", "min_length"):
        if made.get(name) is not None:
            made[name] = max(made[name] - shorter, 0)
        elif config is not None and getattr(config, name, None):
            config = copy.copy(config)
            setattr(config, name, max(getattr(config, name) - shorter, 0))
            made["generation_config"] = config


def _mark(out: Any) -> None:
    for name in ("cache", "past_key_values"):
        cache = out.get(name) if hasattr(out, "get") else None
        if cache is not None:
            setattr(cache, _COMPACTED, True)


def _check_cache(kwargs: dict[str, Any]) -> None:
    """ValueError for a cache of a compacted prompt, in which the caller's ids have no place."""
    for name in ("cache", "past_key_values"):
        if getattr(kwargs.get(name), _COMPACTED, False):
            raise ValueError(
                f"{name}: got that of a prompt whose visual tokens were cut to the budget, wanted "
                "none: give the whole conversation with its pixels, or use bvllm.open_video"
            )
