"""A published LoRA folder, merged into a model's own weights by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.weights.checkpoint import CheckpointError, check_same, read_tensors

FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."


def merge_lora(model: nn.Module, folder: Path) -> None:
    """Add each pair of `folder` to the weight that it belongs to; nothing of peft stays behind.

    Only the modules that the file names get a LoRA: adapter_config.json names them by endings,
    which a vision tower put in after training may have as well.

    Raises:
        CheckpointError: for no file; for keys that are no pair, that the model lacks, or of
            another shape; lists them.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: holds adapter_config.json, but none of {FILES}")
    weights = {key.replace(".default.", "."): tensor for key, tensor in read_tensors([file])}
    names = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in weights}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.base_model_name_or_path = None  # the model is here, whatever it was called in training
    config.target_modules = names & linear
    if not config.target_modules:
        raise CheckpointError(f"{file}: unexpected {sorted(weights)}")
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    dtype = next(model.parameters()).dtype
    adapted: Any = get_peft_model(model, config)
    ours = {
        key.replace(".default.", "."): value
        for key, value in adapted.state_dict().items()
        if "lora_" in key
    }
    check_same(file, "the model", ours, weights)
    set_peft_model_state_dict(adapted, {key: value.to(dtype) for key, value in weights.items()})
    adapted.merge_and_unload()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
