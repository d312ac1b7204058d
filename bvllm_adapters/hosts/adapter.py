"""An adapter: a model's BalancedTokenizer, and its LoRA, in a folder that knows its host."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.hosts.base import TOKENIZER, base_model, tokenizer_of
from bvllm_adapters.hosts.find import names_of
from bvllm_adapters.weights.hub import local_folder, upload
from bvllm_adapters.weights.json_file import CheckpointError
from bvllm_adapters.weights.lora_layers import ATTRIBUTE, FILE, lora_layers, save_lora
from bvllm_adapters.weights.pretrained import CONFIG_FILE, WEIGHTS_FILE
from bvllm_adapters.weights.sampled import (
    differing,
    dtype_of,
    read_sampled,
    sampled,
    save_sampled,
)
from bvllm_adapters.weights.stamped import new_stamp, read_settings, write_json
from bvllm_adapters.weights.whole import saved_whole

ADAPTER_FILE = "adapter.json"
ADAPTER_FORMATS = (1, 2)  # that are read; the last one is written. 1 did not know its base.
LORA_FOLDER = "lora"  # in an adapter's folder, where its language model was tuned too
HOST_FILE = "host_fingerprint.safetensors"  # by which it knows the weights it was trained beside

log = logging.getLogger("bvllm_adapters")


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write the tokenizer of a model, wrapped or native, and which host it belongs to.

    The folder holds JSON and safetensors only; `wrap(adapter=folder)` reads it. LoRA layers that
    came with an adapter, or from training, go into its folder `lora`, in peft's layout. A few
    values of each weight of the host tell its base from others. All of it is there in the end, or
    the adapter that was there before still is; the model does not change.

    Raises:
        ValueError: for a model without tokenizer, and for weights that could not be read again.
    """
    base = base_model(model)
    tokenizer = tokenizer_of(base)
    stamp = new_stamp()
    with saved_whole(folder) as new:
        tokenizer.write_into(new, stamp)
        tuned = bool(lora_layers(base))
        if tuned:
            (new / LORA_FOLDER).mkdir()
            save_lora(base, new / LORA_FOLDER, stamp)
        save_sampled(new / HOST_FILE, sampled(base, host_name), dtype_of(base, host_name))
        about = {
            "format": ADAPTER_FORMATS[-1],
            "host": names_of(base)[0],
            "lora": tuned,
            "bvllm_adapters": version("bvllm-adapters"),
        }
        write_json(new / ADAPTER_FILE, about, stamp)


def push_adapter(model: nn.Module, repo_id: str, *, private: bool | None = None) -> str:
    """Upload what `save_adapter` writes to a hub repository, which is made; returns its address."""
    return upload(lambda folder: save_adapter(model, folder), repo_id, private=private)


def host_name(name: str) -> str | None:
    """The name of a host's own weight, whatever peft has put around it; None: it is none."""
    if name.startswith(f"{TOKENIZER}.") or f".{ATTRIBUTE}." in name or ".lora_" in name:
        return None
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


@dataclass(frozen=True)
class Adapter:
    """What `save_adapter` wrote: the tokenizer, and the folder of its LoRA if it has one."""

    tokenizer: BalancedTokenizer
    lora: Path | None


def load_adapter(
    source: str | Path,
    base: nn.Module,
    *,
    revision: str | None = None,
    strict: bool = True,
    frame_selector: nn.Module | None = None,
) -> Adapter:
    """The adapter that `save_adapter` wrote, if it is one for this model.

    Args:
        strict: False: another base than it was trained beside is a warning.
        frame_selector: one of one's own, where it was saved beside such a one.

    Raises:
        CheckpointError: for files that cannot be read. ValueError: for an adapter of another host
            or, if `strict`, of other weights than the model's.
    """
    folder = local_folder(source, ADAPTER_FILE, revision)
    about = _about(folder)
    if about.get("format") not in ADAPTER_FORMATS or isinstance(about.get("format"), bool):
        raise CheckpointError(
            f"adapter: {folder} is of format {about.get('format')!r}, wanted {ADAPTER_FORMATS[-1]}"
        )
    names = names_of(base)
    if not isinstance(about.get("host"), str):
        raise CheckpointError(f"{folder / ADAPTER_FILE}: host: got {about.get('host')!r}, no name")
    if about["host"] not in names:
        raise ValueError(
            f"adapter: {folder} belongs to a {about.get('host')}, wanted one for a {names[0]}"
        )
    about.setdefault("lora", False if about["format"] == 1 else None)
    if not isinstance(about["lora"], bool):
        raise CheckpointError(
            f"{folder / ADAPTER_FILE}: lora: got {about['lora']!r}, wanted a bool"
        )
    if about["format"] != 1:
        _check_base(folder, base, strict)
    own: dict[str, Any] = {}
    if frame_selector is not None:
        named = BalancedTokenizerConfig.load(folder / CONFIG_FILE).selector
        if named != "custom":
            raise ValueError(f"selector: got it beside adapter, which has its own, {named!r}")
        own = {"frame_selector": frame_selector}
    tokenizer = BalancedTokenizer.from_pretrained(folder, **own)
    return Adapter(tokenizer, _lora(folder, about))


def _about(folder: Path) -> dict[str, Any]:
    """adapter.json, which is of one save with the weights, those of its LoRA too."""
    about = read_settings(folder / ADAPTER_FILE, folder / WEIGHTS_FILE)
    if about.get("lora") is True:
        read_settings(folder / ADAPTER_FILE, folder / LORA_FOLDER / FILE)
    return about


def _lora(folder: Path, about: Mapping[str, Any]) -> Path | None:
    """adapter.json decides: an adapter without LoRA may have been written over one that had one."""
    return folder / LORA_FOLDER if about.get("lora") else None


def _check_base(folder: Path, base: nn.Module, strict: bool) -> None:
    saved, other = read_sampled(folder / HOST_FILE)
    ours = sampled(base, host_name)
    found = differing(ours, dtype_of(base, host_name), saved, other)
    if not found:
        return
    told = (
        f"adapter: {folder} was trained beside other weights than the model's: {len(found)} of "
        f"{len(ours.keys() & saved.keys())} differ, {found[0]} the first. It belongs to another "
        "base, or a LoRA (maybe its own) has been merged into this one"
    )
    if strict:
        raise ValueError(f"{told}; strict=False takes it all the same")
    log.warning("%s", told)


def lora_of(source: str | Path) -> Path | None:
    """The folder of an adapter's LoRA, in peft's layout; None if it has none."""
    folder = local_folder(source, ADAPTER_FILE)
    return _lora(folder, _about(folder))
