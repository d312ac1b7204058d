"""Settings and weights in two files of one save: config as JSON, weights as safetensors.

Both hold the stamp of their save. Settings of one save beside the weights of another, as an
interrupted copy or upload leaves them, would load and answer otherwise.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bvllm_adapters.weights.checkpoint import read_shapes
from bvllm_adapters.weights.json_file import STAMP, CheckpointError, read_json, readable
from bvllm_adapters.weights.sizes import check_settings

# What peft, torch.nn.utils.parametrize and others put into the names of a module's weights.
_FOREIGN = ("base_layer.", "lora_", "modules_to_save.", "original_module.", "parametrizations.")


def new_stamp() -> str:
    return uuid.uuid4().hex[:16]


def write_json(file: Path, values: Mapping[str, Any], stamp: str) -> None:
    text = json.dumps({**values, STAMP: stamp}, indent=2)
    file.write_text(text + "\n", encoding="utf-8")


def write_weights(file: Path, weights: Mapping[str, Tensor], stamp: str) -> None:
    save_file(dict(weights), file, metadata={"format": "pt", STAMP: stamp})


def stamp_of(file: Path) -> str | None:
    """Of a safetensors file; None: it was written without one.

    Raises:
        CheckpointError: it cannot be read.
    """
    with readable(file), safe_open(file, framework="pt") as opened:
        return (opened.metadata() or {}).get(STAMP)


def read_settings(
    file: Path,
    weights: Path,
    needed: Iterable[str] = (),
    unused: Callable[[Mapping[str, Any]], Collection[str]] = lambda values: (),
) -> dict[str, Any]:
    """The JSON object, without its stamp, which must be that of `weights` if both have one.

    Args:
        needed: names that a file with a stamp has all; older ones may lack newer settings.
        unused: settings -> names of those that nothing is made of.

    Raises:
        CheckpointError: a file that cannot be read, files of two saves, missing settings, or sizes
            that no weights are there for.
    """
    values = read_json(file)
    idle = unused(values)
    used = {name: value for name, value in values.items() if name not in idle}
    check_settings(file, used, dict(read_shapes([weights])))
    stamp, other = values.pop(STAMP, None), stamp_of(weights)
    if stamp is not None and other is not None and stamp != other:
        raise CheckpointError(
            f"{file}: got settings of the save {stamp}, wanted {other} as of {weights.name}: "
            "the two were not saved together"
        )
    missing = [name for name in needed if name not in values]
    if missing and other is not None:
        raise CheckpointError(f"{file}: got no {', '.join(missing)}, wanted all settings")
    return values


def plain_weights(
    module: nn.Module, what: str, *, allowed: Collection[str] = ()
) -> dict[str, Tensor]:
    """A module's weights under its own names, each in memory of its own.

    Offloaded ones are brought back; torch.compile's names are left out.

    Args:
        what: it is, for messages. allowed: names that are its own, whatever they look like.

    Raises:
        ValueError: for weights that could not be read back: packed ones, or names that peft or a
            parametrization has changed.
    """
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]  # seldom used

    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{what}: got packed weights in {name}, wanted plain ones")
        of, _, last = name.rpartition(".")
        owner = module.get_submodule(of)
        is_weight = isinstance(getattr(owner, last, None), nn.Parameter)
        if is_weight and (not value.is_floating_point() or _is_packed(value)):
            raise ValueError(
                f"{what}: got {type(value).__name__} of {value.dtype} in {name}, wanted plain "
                "floating point weights"
            )
        if name not in allowed and any(part in f"{name}." for part in _FOREIGN):
            raise ValueError(
                f"{what}: got {name}, which is not its own (peft's, or a parametrization's), "
                "wanted its weights alone; merge_and_unload(), or leave it out of target_modules"
            )
        if value.is_meta:
            with align_module_device(owner):
                value = getattr(owner, last).detach().clone()
        value = value.contiguous()
        if value.untyped_storage().data_ptr() in seen:  # one weight under two names
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        found[name.replace("_orig_mod.", "")] = value
    return found


def _is_packed(value: Tensor) -> bool:
    """Whether it is of a library's own kind, as torchao's quantised and distributed ones are."""
    return type(value) not in (Tensor, nn.Parameter, torch.nn.parameter.Buffer)
