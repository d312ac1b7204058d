"""Measuring a model: on questions of one's own, on the needle task, with intervals.

from bvllm_adapters.evaluation import evaluate_file

print(evaluate_file(model, "questions.jsonl", out="results.jsonl"))

It may import conversation and what is below it; not training, bench or testing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bvllm_adapters.evaluation.table_accuracy import FileResults as FileResults
    from bvllm_adapters.evaluation.table_accuracy import evaluate_file as evaluate_file

_HOMES = {"evaluate_file": "table_accuracy", "FileResults": "table_accuracy"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
