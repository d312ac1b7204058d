"""What a run will need, looked for before it starts: packages, files, room to write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from math import ceil
from pathlib import Path

from torch import nn
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from bvllm_adapters.hosts.base import base_model, tokenizer_of
from bvllm_adapters.tables.text import parse_json, read_text
from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.rows import Rows


def check_needs(config: TrainingConfig) -> None:
    """What can be known without rows and model.

    Raises:
        ValueError: naming the config's field, what came and what was wanted.
    """
    if config.deepspeed is not None:
        where = f"deepspeed: {config.deepspeed}"
        if not isinstance(parse_json(read_text("deepspeed", config.deepspeed), where), Mapping):
            raise ValueError(f"{where}: got no JSON object, wanted DeepSpeed's settings")
        if find_spec("deepspeed") is None:
            raise ValueError(
                f"deepspeed: got {config.deepspeed}, but the package is not installed; wanted "
                "`pip install deepspeed`, or no such line in the config"
            )
    here = {"none", "all", *get_available_reporting_integrations()}
    for name in config.report_to:
        if name not in INTEGRATION_TO_CALLBACK and name not in here:
            raise ValueError(
                f"report_to: got {name!r}, wanted some of {sorted(INTEGRATION_TO_CALLBACK)}"
            )
        if name not in here:
            raise ValueError(f"report_to: got {name!r}, which is not installed, wanted it to be")
    there = _there(config.output)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"output: got {config.output}, but {there} cannot be written into")


def _there(path: Path) -> Path:
    """What exists of a path."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def check_media(rows: Rows, name: str, most: float) -> list[Path]:
    """The missing files of rows, in order.

    Args:
        name: of the config's field. most: share of the rows that may lack one.

    Raises:
        ValueError: more lack one.
    """
    paths = {medium.path for row in rows for medium in row.media}
    gone = {path for path in paths if not os.path.exists(path)}
    missing = sum(any(medium.path in gone for medium in row.media) for row in rows)
    if missing > most * len(rows):
        raise ValueError(
            f"{name}: got {missing} of {len(rows)} rows without their files, "
            f"wanted {most:.2%} at most{' (max_skipped)' * (most > 0)}; the first: {min(gone)}"
        )
    return sorted(gone)


def room_needed(config: TrainingConfig, model: nn.Module, steps: int) -> int:
    """Bytes that a run's checkpoints and its adapter take, when most of them are there.

    A checkpoint holds the adapter and AdamW's two float32 moments of each trained weight, with
    DeepSpeed a float32 copy of it too. One more than `keep` is there while it is written.
    """
    base = base_model(model)
    own = {id(p) for p in tokenizer_of(base).parameters()}
    trained = [p for p in base.parameters() if p.requires_grad]
    adapter = sum(p.numel() * p.element_size() for p in tokenizer_of(base).parameters())
    adapter += sum(p.numel() * p.element_size() for p in trained if id(p) not in own)
    moments = sum(p.numel() for p in trained) * (8 if config.deepspeed is None else 12)
    saved = ceil(steps / config.save_every)
    kept = saved if config.keep is None else min(saved, config.keep + 1)
    return kept * (adapter + moments) + adapter


def check_room(config: TrainingConfig, model: nn.Module, steps: int) -> tuple[int, int]:
    """`room_needed`, and how many bytes are free.

    Raises:
        ValueError: there are fewer.
    """
    needed, free = room_needed(config, model, steps), shutil.disk_usage(_there(config.output)).free
    if needed > free:
        raise ValueError(
            f"output: got {free / 1e9:.2f} GB free in {_there(config.output)}, wanted "
            f"{needed / 1e9:.2f} GB for its checkpoints (keep, save_every) and the adapter"
        )
    return needed, free
