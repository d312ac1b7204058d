"""An adapter: a model's BalancedTokenizer, and its LoRA, in a folder that knows its host."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.weights.hub import local_folder
from bvllm_adapters.weights.lora_layers import lora_layers, save_lora

ADAPTER_FILE = "adapter.json"
ADAPTER_FORMAT = 1
LORA_FOLDER = "lora"  # in an adapter's folder, where its language model was tuned too
TOKENIZER = "balanced_tokenizer"  # the attribute under which a model holds its tokenizer


def base_model(model: nn.Module) -> nn.Module:
    """The host inside a PeftModel; any other model itself."""
    while any(cls.__name__ == "PeftModel" for cls in type(model).__mro__):
        model = model.get_base_model()  # type: ignore[operator]
    return model


def tokenizer_of(base: nn.Module) -> BalancedTokenizer:
    """That of a model, wrapped or native; ValueError: it has none."""
    tokenizer = getattr(base, TOKENIZER, None)
    if not isinstance(tokenizer, BalancedTokenizer):
        raise ValueError(
            f"model: got a {type(base).__name__} without BalancedTokenizer; wrap it first"
        )
    return tokenizer


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write the tokenizer of a model, wrapped or native, and which host it belongs to.

    The folder holds JSON and safetensors only; `wrap(adapter=folder)` reads it. LoRA layers that
    came with an adapter, or from training, go into its folder `lora`, in peft's layout.
    """
    base = base_model(model)
    tokenizer_of(base).save_pretrained(folder)
    tuned = bool(lora_layers(base))
    if tuned:
        save_lora(base, Path(folder) / LORA_FOLDER)
    about = {
        "format": ADAPTER_FORMAT,
        "host": type(base).__name__,
        "lora": tuned,
        "bvllm_adapters": version("bvllm-adapters"),
    }
    (Path(folder) / ADAPTER_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load_adapter(source: str | Path, host: str) -> BalancedTokenizer:
    """The tokenizer that `save_adapter` wrote for models of class `host`."""
    folder = local_folder(source, ADAPTER_FILE)
    about = _about(folder)
    if about.get("format") != ADAPTER_FORMAT:
        raise ValueError(
            f"adapter: {folder} is of format {about.get('format')}, wanted {ADAPTER_FORMAT}"
        )
    if about.get("host") != host:
        raise ValueError(
            f"adapter: {folder} belongs to a {about.get('host')}, wanted one for a {host}"
        )
    return BalancedTokenizer.from_pretrained(folder)


def lora_of(source: str | Path) -> Path | None:
    """The folder of an adapter's LoRA, in peft's layout; None if it has none."""
    folder = local_folder(source, ADAPTER_FILE)
    # adapter.json decides: an adapter without LoRA may have been written over one that had some.
    return folder / LORA_FOLDER if _about(folder).get("lora") else None


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    return about
