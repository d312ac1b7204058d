"""LoRA layers that stay beside a model's weights: put in, taken out, kept in peft's layout.

They belong to an adapter, so they come and go with it; `merged_lora` merges a published LoRA into a
model for good.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bvllm_adapters.weights.checkpoint import CheckpointError, check_same, read_tensors

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's, before every name
NAME = "bvllm"  # under which peft knows our layers, next to whatever others it may have put in


@dataclass(frozen=True, eq=False)
class Lora:
    """LoRA layers outside of their model, by the names of their places, and peft's settings."""

    layers: dict[str, nn.Module]
    config: Any


def add_lora(
    model: nn.Module, targets: Collection[str], *, rank: int, alpha: float, dropout: float = 0.0
) -> None:
    """Give each linear layer named in `targets` a LoRA, in place; what comes out is as before.

    New weights are of the layer's dtype and trainable; no other parameter changes.

    Raises:
        ValueError: for a model that has LoRA layers already.
    """
    from peft import LoraConfig

    _inject(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes fractions too
            lora_dropout=dropout,
            target_modules=list(targets),
            base_model_name_or_path=str(getattr(model, "name_or_path", "") or "") or None,
        ),
    )


def _inject(model: nn.Module, config: Any) -> None:
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("model: got one with LoRA layers, wanted one without; merge them first")
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    inject_adapter_in_model(config, model, adapter_name=NAME)
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer.", ".")
        parameter.requires_grad_(trainable.get(plain, f".{NAME}." in name))


def lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Our LoRA layers by the name of the layer that each stands for."""
    return {
        name: module
        for name, module in model.named_modules()
        if NAME in getattr(module, "lora_A", ())
    }


def take_out(model: nn.Module) -> Lora | None:
    """Put the layers that had a LoRA back, in place; returns what `put_back` needs, if any."""
    layers = lora_layers(model)
    if not layers:
        return None
    for name, layer in layers.items():
        _set(model, name, layer.base_layer)  # type: ignore[arg-type]
    return Lora(layers, model.__dict__.pop("peft_config"))


def put_back(model: nn.Module, lora: Lora) -> None:
    """The reverse of `take_out`."""
    for name, layer in lora.layers.items():
        _set(model, name, layer)
    model.__dict__["peft_config"] = lora.config


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def save_lora(model: nn.Module, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which PeftModel reads too."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = copy.copy(model.peft_config[NAME])  # type: ignore[index]
    config.target_modules = sorted(config.target_modules)  # a set would be written in any order
    config.save_pretrained(str(folder))
    weights = {PREFIX + name: value.contiguous() for name, value in _weights(model).items()}
    save_file(weights, folder / FILE, metadata={"format": "pt"})


def load_lora(model: nn.Module, folder: Path) -> None:
    """Put the LoRA layers that `save_lora` wrote into a model, in place.

    Raises:
        CheckpointError: for layers that the model lacks, or of another shape.
    """
    from peft import PeftConfig

    saved = dict(read_tensors([folder / FILE]))
    targets = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in saved}
    lacking = sorted(targets - {n for n, m in model.named_modules() if isinstance(m, nn.Linear)})
    if lacking:
        raise CheckpointError(f"{folder / FILE}: the model has no linear layers {lacking}")
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.target_modules = targets  # exactly these; the file may name them by endings only
    _inject(model, config)
    try:
        copy_lora(model, folder)
    except CheckpointError:
        take_out(model)
        raise


@torch.no_grad()
def copy_lora(model: nn.Module, folder: Path) -> None:
    """What `save_lora` wrote into the LoRA layers that a model has, in their dtype.

    Raises:
        CheckpointError: for weights that are missing, unexpected or of another shape.
    """
    saved = {k.removeprefix(PREFIX): tensor for k, tensor in read_tensors([folder / FILE])}
    ours = _weights(model)
    check_same(folder / FILE, "the model's LoRA", ours, saved)
    for name, tensor in ours.items():
        tensor.copy_(saved[name])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Under peft's names of a file, which leave out the adapter's."""
    marker = f".{NAME}."
    return {
        name.replace(marker, "."): value.detach()
        for name, value in model.named_parameters()
        if ".lora_" in name and marker in name
    }
