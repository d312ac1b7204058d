"""lmms-eval's plug-in: `python -m lmms_eval --model bvllm` runs any host under a budget.

lmms-eval finds it by the entry point group `lmms_eval.models`. Nothing heavy is imported until one
of its models is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["TASKS", "manifests"]

TASKS = Path(__file__).parent / "tasks"
"""Tasks of the paper that lmms-eval has not, for its `--include_path`."""


def manifests() -> list[Any]:
    """What lmms-eval registers: one model, asked by a task's text or by its messages."""
    from lmms_eval.models.registry_v2 import ModelManifest

    model = f"{__name__}.model"
    return [ModelManifest("bvllm", f"{model}.Bvllm", f"{model}.BvllmChat")]
