"""A LoRA that belongs to an adapter: put in, taken out, merged, kept in peft's layout.

It stands beside a linear layer, not in its place: a small module that adds to what the layer gives.
So the layer and its weights stay what and where they are, whoever else has a LoRA of peft's around
it, and whichever of theirs is active. `merged_lora` merges a published LoRA into a model for good.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvllm_adapters.weights.checkpoint import CheckpointError, check_same, read_tensors
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.json_file import is_number, read_json
from bvllm_adapters.weights.stamped import plain_weights, write_weights

FILE = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # peft's, before every name
ATTRIBUTE = "bvllm_lora"  # under which a linear layer holds its LoRA
_MATRICES = ("lora_A", "lora_B")


class LoraLayer(nn.Module):
    """What is added to a linear layer's output: alpha / rank * B A dropout(x) (Hu et al.).

    Args:
        rank: r. alpha: of the scale. dropout: before A, in training.
        width_in, width_out: of the linear layer. Weights are made on `device` in `dtype`; B is
            zero, so that what comes out is as before; A is yet to be filled.
    """

    active_adapters = ("bvllm",)  # as peft's layers tell which of theirs are; this one always is

    def __init__(
        self,
        rank: int,
        alpha: float,
        dropout: float,
        width_in: int,
        width_out: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.lora_A = nn.Parameter(torch.empty(rank, width_in, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(width_out, rank, device=device, dtype=dtype))
        self.handle: Any = None  # of the hook on the linear layer

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """(..., in) and the linear layer's (..., out) -> (..., out) in the dtype of the latter."""
        x = F.dropout(x.to(self.lora_A.dtype), self.dropout, self.training)
        added = F.linear(F.linear(x, self.lora_A), self.lora_B) * (self.alpha / self.rank)
        return (output + added).to(output.dtype)

    def matrix(self) -> Tensor:
        """(out, in) float32: what is added to the linear layer's weight."""
        scale = self.alpha / self.rank
        return self.lora_B.detach().float() @ self.lora_A.detach().float() * scale


def _add(linear: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The forward hook of a linear layer with a LoRA."""
    added: Tensor = getattr(linear, ATTRIBUTE)(inputs[0], output)
    return added


def add_lora(
    model: nn.Module, targets: Collection[str], *, rank: int, alpha: float, dropout: float = 0.0
) -> None:
    """Give each linear layer named in `targets` a LoRA, in place; what comes out is as before.

    New weights are of the layer's dtype (float32 beside packed ones) and trainable; no other
    parameter changes.

    Raises:
        ValueError: for a model that has a LoRA of ours already, or a name that is no linear layer.
    """
    _check_has_none(model)
    linears = linear_layers(model)
    lacking = sorted(set(targets) - linears.keys())
    if lacking:
        raise ValueError(f"targets: got {lacking}, wanted names of linear layers of the model")
    for name in targets:
        layer = _beside(linears[name], rank, alpha, dropout)
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))


def _check_has_none(model: nn.Module) -> None:
    if lora_layers(model):
        raise ValueError("model: got one with a LoRA of an adapter, wanted one without")


def _beside(linear: Any, rank: int, alpha: float, dropout: float) -> LoraLayer:
    """A LoRA of this linear layer, put there, that is yet to be filled."""
    floating = linear.weight.is_floating_point()
    layer = LoraLayer(
        rank,
        alpha,
        dropout,
        linear.in_features,
        linear.out_features,
        device=device_of(linear),
        dtype=linear.weight.dtype if floating else torch.float32,
    )
    _put(linear, layer.train(linear.training))
    return layer


def _put(linear: nn.Module, layer: LoraLayer) -> None:
    setattr(linear, ATTRIBUTE, layer)
    layer.handle = linear.register_forward_hook(_add)


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """All linear layers by name, where one of peft's stands around it by the name that it had."""
    return {
        _plain(name): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def _plain(name: str) -> str:
    """Without what peft puts between when it stands a layer of its own around one."""
    return name.replace(".base_layer", "")


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Our LoRA layers by the name of the linear layer that each stands beside."""
    end = f".{ATTRIBUTE}"
    return {
        _plain(name.removesuffix(end)): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def put_back(model: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
    """LoRA layers that were taken out, to where `lora_layers` found them."""
    linears = linear_layers(model)
    for name, layer in layers.items():
        _put(linears[name], layer)


def take_out(model: nn.Module) -> None:
    """Remove our LoRA layers, in place."""
    for module in list(model.modules()):
        layer = module._modules.get(ATTRIBUTE)
        if isinstance(layer, LoraLayer):
            layer.handle.remove()
            delattr(module, ATTRIBUTE)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add each LoRA to the weight it stands beside, in place and for good, and remove it.

    Raises:
        ValueError: for weights that are packed, or offloaded; nothing has changed then.
    """
    linears = linear_layers(model)
    for name in lora_layers(model):
        weight = linears[name].weight
        if not weight.is_floating_point() or weight.is_meta:
            raise ValueError(
                f"model: got {weight.dtype} weights on {weight.device} in {name}, wanted floating "
                "point ones on a device to merge a LoRA into"
            )
    for name, layer in lora_layers(model).items():
        weight = linears[name].weight
        weight.copy_(weight.float() + layer.matrix().to(weight.device))
    take_out(model)


def save_lora(model: nn.Module, folder: Path, stamp: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which PeftModel reads too.

    Args:
        stamp: of the save that it is a part of.

    Raises:
        ValueError: for layers of different ranks, scales or dropout, which one config cannot say.
    """
    from peft import LoraConfig

    layers = lora_layers(model)
    settings = {(layer.rank, layer.alpha, layer.dropout) for layer in layers.values()}
    if len(settings) != 1:
        raise ValueError(f"model: got LoRA layers of {sorted(settings)}, wanted them alike")
    ((rank, alpha, dropout),) = settings
    config: Any = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes fractions too
        lora_dropout=dropout,
        target_modules=sorted(layers),
        base_model_name_or_path=str(getattr(model, "name_or_path", "") or "") or None,
    )
    config.target_modules = sorted(layers)  # a set would be written in any order
    config.inference_mode = True
    config.save_pretrained(str(folder))
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        plain = plain_weights(layer, f"the LoRA of {name}", allowed=_MATRICES)
        weights |= {f"{PREFIX}{name}.{matrix}.weight": plain[matrix] for matrix in _MATRICES}
    write_weights(folder / FILE, weights, stamp)


def load_lora(model: nn.Module, folder: Path) -> None:
    """Put the LoRA layers that `save_lora` wrote into a model, in place.

    Raises:
        CheckpointError: for layers that the model lacks, or of another shape, and for settings
            other than `save_lora` writes.
    """
    saved = _read(folder)
    alpha, dropout = _settings(folder / CONFIG)
    first = {
        name.partition(".lora_")[0]: tensor
        for name, tensor in saved.items()
        if name.endswith("lora_A.weight")
    }
    ranks = {tensor.shape[0] if tensor.dim() == 2 else 0 for tensor in first.values()}
    if len(ranks) != 1 or 0 in ranks:
        raise CheckpointError(f"{folder / FILE}: got ranks {sorted(ranks)}, wanted one")
    linears = linear_layers(model)
    lacking = sorted(first.keys() - linears.keys())
    if lacking:
        raise CheckpointError(f"{folder / FILE}: the model has no linear layers {lacking}")
    (rank,) = ranks
    widest = max(max(linears[name].weight.shape) for name in first)
    if rank > widest:
        raise CheckpointError(f"{folder / FILE}: got rank {rank}, wanted {widest} at most")
    _check_has_none(model)
    try:
        for name in first:
            _beside(linears[name], rank, alpha, dropout)
        _copy(saved, model, folder / FILE)
    except BaseException:
        take_out(model)
        raise


def _settings(file: Path) -> tuple[float, float]:
    """alpha and dropout of an adapter's LoRA. What else changes its sums must be as peft's
    default: nothing here knows what to do with it."""
    values = read_json(file)
    plain: Mapping[str, Any] = {
        "peft_type": "LORA",
        "use_dora": False,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
    }
    for name, wanted in plain.items():
        got = values.get(name, wanted)
        if got != wanted or type(got) is not type(wanted):
            raise CheckpointError(f"{file}: {name}: got {got!r}, wanted {wanted!r}")
    alpha: Any = values.get("lora_alpha")
    dropout: Any = values.get("lora_dropout", 0.0)
    if not is_number(alpha) or not 0 < alpha < 1e9:
        raise CheckpointError(f"{file}: lora_alpha: got {alpha!r}, wanted a number > 0")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise CheckpointError(f"{file}: lora_dropout: got {dropout!r}, wanted a number in [0, 1)")
    return alpha, dropout


def copy_lora(model: nn.Module, folder: Path) -> None:
    """What `save_lora` wrote into the LoRA layers that a model has, in their dtype.

    Raises:
        CheckpointError: for weights that are missing, unexpected or of another shape.
    """
    _copy(_read(folder), model, folder / FILE)


def _read(folder: Path) -> dict[str, Tensor]:
    """What lies in a folder, under peft's names without their prefix."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors([folder / FILE])}


@torch.no_grad()
def _copy(saved: Mapping[str, Tensor], model: nn.Module, file: Path) -> None:
    ours = _weights(model)
    check_same(file, "the model's LoRA", ours, saved)
    for name, tensor in ours.items():
        tensor.copy_(saved[name])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Under peft's names of a file, without its prefix."""
    return {
        f"{name}.{matrix}.weight": getattr(layer, matrix).detach()
        for name, layer in lora_layers(model).items()
        for matrix in _MATRICES
    }
