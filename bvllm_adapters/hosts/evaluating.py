"""A model answers as in evaluation, whatever mode its modules are in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass
class _Run:
    """Modules that were in training mode when the first of `count` blocks began."""

    training: list[nn.Module]
    count: int = 0


_lock = threading.Lock()
_runs: dict[int, _Run] = {}  # by id() of the model, which lives as long as a block does


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout, no noise, no checkpointing of gradients inside the block; modes are left.

    Only modules in training mode are touched, each by its own flag, and only they are put back:
    once the last of the blocks that run on this model in any thread has ended. A model in
    evaluation mode is not touched at all. While a model is asked, whoever changes its mode, or
    trains it in another thread, is not waited for: its mode is the model's, and not a thread's.

    Args:
        model: always the whole one, as blocks on it and on a part of it do not know each other.
    """
    with _lock:
        run = _runs.get(id(model))
        if run is None:
            run = _runs[id(model)] = _Run([part for part in model.modules() if part.training])
            for part in run.training:
                part.training = False
        run.count += 1
    try:
        yield
    finally:
        with _lock:
            run.count -= 1
            if not run.count:
                del _runs[id(model)]
                for part in run.training:
                    part.training = True
