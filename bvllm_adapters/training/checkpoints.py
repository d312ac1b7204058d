"""Checkpoints of a run: written aside, renamed last, and read only if they are whole.

A checkpoint's last file lists all others with their sizes. A folder without it, or with another
size than it says, was interrupted or damaged, and the one before it goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from bvllm_adapters.tables.text import parse_json, read_text
from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.files import write_whole
from bvllm_adapters.training.rows import Rows

CONFIG_FILE = "training.yaml"
DATA_FILE = "training_data.json"
FILES = "files.json"  # of a checkpoint
UNFINISHED = "unfinished"  # folder in the output, of what is being written or taken away
# What a run may change when it goes on, as it does not change what is learned.
FREE = frozenset(
    "output batch_per_device gradient_checkpointing deepspeed workers max_skipped outside_media "
    "validation validate_every save_every keep log_every report_to".split()
)

log = logging.getLogger("bvllm_adapters")


def begin(config: TrainingConfig, rows: Rows) -> None:
    """Write down what a run is made of; the config last, as it is asked for first."""
    about = {"rows": len(rows), "sha256": rows.digest(), "covers": "turns, media paths and sizes"}
    write_whole(config.output / DATA_FILE, json.dumps(about, indent=2) + "\n")
    config.save(config.output / CONFIG_FILE)


def last_checkpoint(config: TrainingConfig, resume: bool) -> Path | None:
    """The last whole one in the output folder, to go on from; None where a run begins.

    Raises:
        ValueError: there is one, and it is not to be resumed; there is none, or one of a run with
            another config, and it is.
    """
    found = _checkpoints(config.output)
    if not resume:
        if found:
            raise ValueError(f"output: got {found[-1]} in it, wanted to resume, or another folder")
        return None
    while found and (torn := why_not_whole(found[-1])):
        log.warning("resume: %s is not whole: %s; looking for the one before", found.pop(), torn)
    if not found:
        raise ValueError(
            f"resume: got no checkpoint in {config.output} that is whole, wanted one to go on from"
        )
    begun, now = TrainingConfig.load(config.output / CONFIG_FILE).to_dict(), config.to_dict()
    other = [name for name in now if now[name] != begun[name] and name not in FREE]
    if other:
        raise ValueError(
            f"resume: got another {', '.join(other)} than {config.output / CONFIG_FILE}, "
            f"wanted no change but of {sorted(FREE)}"
        )
    return found[-1]


def check_same_data(config: TrainingConfig, rows: Rows) -> None:
    """That a resumed run has the rows that it began with, as `Rows.digest` knows them.

    Raises:
        ValueError: other rows, or no word of those that it began with.
    """
    file = config.output / DATA_FILE
    begun = parse_json(read_text("resume", file), f"resume: {file}")
    if not isinstance(begun, Mapping) or begun.get("sha256") != rows.digest():
        count = begun.get("rows") if isinstance(begun, Mapping) else None
        raise ValueError(
            f"resume: got other data than the run began with ({len(rows)} rows, then {count}), "
            f"wanted the same turns, media paths and sizes, or another output folder; see {file}"
        )


def why_not_whole(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None: it is whole."""
    try:
        sizes = parse_json(read_text("checkpoint", checkpoint / FILES), FILES)
        state = parse_json(
            read_text("checkpoint", checkpoint / TRAINER_STATE_NAME), TRAINER_STATE_NAME
        )
    except ValueError as error:
        return str(error)
    if not isinstance(sizes, Mapping) or not sizes:
        return f"{FILES} lists no files"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or of another size"
    if not isinstance(state, Mapping) or state.get("global_step") != _step(checkpoint):
        return f"{TRAINER_STATE_NAME} is of another step"
    return None


def finish(written: Path, output: Path, keep: int | None) -> None:
    """Put a checkpoint that was written aside into its place, and take older ones away.

    Args:
        written: its folder below `unfinished`. keep: how many to leave; None: all.
    """
    files = [file for file in sorted(written.rglob("*")) if file.is_file()]
    sizes: dict[str, Any] = {str(f.relative_to(written)): f.stat().st_size for f in files}
    write_whole(written / FILES, json.dumps(sizes, indent=2) + "\n")
    if (output / written.name).exists():  # a torn one, which was gone past
        _take_away(output / written.name)
    os.rename(written, output / written.name)
    for old in () if keep is None else _checkpoints(output)[:-keep]:
        _take_away(old)
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)


def _take_away(checkpoint: Path) -> None:
    """At once for whoever looks, whatever time it takes."""
    aside = checkpoint.parent / UNFINISHED / f"old-{checkpoint.name}"
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(checkpoint, aside)
    shutil.rmtree(aside)


def _checkpoints(output: Path) -> list[Path]:
    """Folders checkpoint-N, in order."""
    found = [path for path in output.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])
