"""Training, in two stages (paper, section 7.1): a config in, an adapter for `bvllm.wrap` out.

from bvllm_adapters.training import TrainingConfig, train

model = train(TrainingConfig.load("examples/training/bvllm_qwen2_alignment.yaml"))

It may import conversation and what is below it; not evaluation, bench or testing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bvllm_adapters.training.config import TrainingConfig as TrainingConfig
    from bvllm_adapters.training.dry_run import dry_run as dry_run
    from bvllm_adapters.training.host import HostTraining as HostTraining
    from bvllm_adapters.training.lora_settings import LoraSettings as LoraSettings
    from bvllm_adapters.training.rows import read_rows as read_rows
    from bvllm_adapters.training.run import train as train

_HOMES = {
    "TrainingConfig": "config",
    "LoraSettings": "lora_settings",
    "read_rows": "rows",
    "HostTraining": "host",
    "dry_run": "dry_run",
    "train": "run",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
