"""A published LoRA folder, merged into a model's own weights by peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bvllm_adapters.weights.checkpoint import CheckpointError, check_same, read_tensors
from bvllm_adapters.weights.json_file import blamed, read_json
from bvllm_adapters.weights.lora_layers import CONFIG, FILE, PREFIX
from bvllm_adapters.weights.sizes import check_present

# All that is handed on of it. Its other fields name files, models of the hub and modules to import;
# and the model is here, whatever it was called in training.
_RANKS = ("r", "rank_pattern")
_SCALES = ("lora_alpha", "alpha_pattern")
_SWITCHES = ("use_rslora", "use_dora", "fan_in_fan_out")
FILES = (FILE, "adapter_model.bin")


def _settings(file: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What peft is told; ranks are held against the weights before a layer is made.

    Raises:
        CheckpointError: for another kind of adapter, or a value of the wrong kind or size.
    """
    values = read_json(file)
    if values.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{file}: peft_type: got {values['peft_type']!r}, wanted 'LORA'")
    if values.get("bias", "none") != "none":
        raise CheckpointError(f"{file}: bias: got {values['bias']!r}, wanted 'none'")
    check_present(file, values, "r lora_alpha")
    widest = max((max(value.shape, default=0) for value in weights.values()), default=0)
    settings = {}
    for name in (*_RANKS, *_SCALES, *_SWITCHES):
        value = values.get(name)
        if value is None:
            continue
        numbers = list(value.values()) if isinstance(value, dict) else [value]
        if name in _SWITCHES:
            right = isinstance(value, bool)
        else:
            most, kinds = (widest, (int,)) if name in _RANKS else (1e9, (int, float))
            right = isinstance(value, dict) == name.endswith("_pattern") and all(
                type(number) in kinds and 0 < number <= most for number in numbers
            )
        if not right:
            raise CheckpointError(
                f"{file}: {name}: got {value!r}, wanted what fits weights of {widest} at most"
            )
        settings[name] = value
    return settings


def merge_lora(model: nn.Module, folder: Path) -> None:
    """Add each pair of `folder` to the weight that it belongs to; nothing of peft stays behind.

    Only the modules that the file names get a LoRA: adapter_config.json names them by endings,
    which a vision tower put in after training may have as well.

    Raises:
        CheckpointError: for no file; for keys that are no pair, that the model lacks, or of
            another shape; lists them.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: holds adapter_config.json, but none of {FILES}")
    weights = {key.replace(".default.", "."): tensor for key, tensor in read_tensors([file])}
    names = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in weights}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not names & linear:
        raise CheckpointError(f"{file}: unexpected {sorted(weights)}")
    settings = _settings(folder / CONFIG, weights)
    with blamed(folder / CONFIG):
        config: Any = LoraConfig(target_modules=sorted(names & linear), **settings)
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
