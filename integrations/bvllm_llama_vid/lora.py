"""A published LoRA folder, merged into the model's own weights."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from bvllm_adapters.checkpoint import CheckpointError, read_tensors

PREFIX = "base_model.model."


def merge_lora(model: nn.Module, folder: Path) -> None:
    """Add scale * B A to each weight that `folder` has a pair for.

    Raises:
        CheckpointError: for a kind of adapter other than plain LoRA; keys that are no pair, that
            the model lacks, or of shapes that do not fit; lists them.
    """
    about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    other = [
        key
        for key in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias")
        if about.get(key)
    ]
    if about.get("peft_type") != "LORA" or other:
        raise CheckpointError(
            f"{folder}: got a {about.get('peft_type')} adapter with {other}, wanted plain LoRA"
        )
    files = [folder / f"adapter_model{suffix}" for suffix in (".safetensors", ".bin")]
    found = [file for file in files if file.is_file()]
    if not found:
        raise CheckpointError(f"{folder}: holds no adapter_model.safetensors or .bin")
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    parameters = dict(model.named_parameters())
    unexpected = []
    for key, tensor in read_tensors(found[:1]):
        name, dot, half = key.removeprefix(PREFIX).replace(".default.", ".").partition(".lora_")
        half = half.removesuffix(".weight")
        if dot and half in ("A", "B") and f"{name}.weight" in parameters:
            pairs[name][half] = tensor
        else:
            unexpected.append(key)
    halves = [
        f"{name} without {half}"
        for name, pair in pairs.items()
        for half in "AB"
        if half not in pair
    ]
    if unexpected or halves:
        raise CheckpointError(f"{found[0]}: unexpected {unexpected}, missing {halves}")
    rank = about["r"]
    scale = about["lora_alpha"] / (rank**0.5 if about.get("use_rslora") else rank)
    for name, pair in pairs.items():
        weight, a, b = parameters[f"{name}.weight"], pair["A"], pair["B"]
        if (len(b), *a.shape[1:]) != tuple(weight.shape) or not a.shape[0] == b.shape[1] == rank:
            raise CheckpointError(
                f"{found[0]}: {name} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
                f"wanted rank {rank} for a weight of {tuple(weight.shape)}"
            )
        with torch.no_grad():
            weight.copy_(weight.float() + scale * (b.float() @ a.float()))
