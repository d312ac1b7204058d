"""What tells results of one model, or of one selector, from those of another."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.find import names_of
from bvllm_adapters.weights.sampled import sampled


def model_identity(base: nn.Module) -> dict[str, Any]:
    """By what results of one model are told from those of another: its class, its tokenizer's
    settings, how it generates, and a few values of each weight; as JSON."""
    config = tokenizer_of(base).config.to_dict()
    words = config.pop("vocabulary", None)
    config["vocabulary"] = None if words is None else _digest("\n".join(map(str, words)))
    generation: Any = getattr(base, "generation_config", None)
    how = {} if generation is None else generation.to_diff_dict()
    return {
        "class": names_of(base)[0],
        "tokenizer": config,
        "generation": {key: how[key] for key in sorted(how) if key != "transformers_version"},
        **_weights(base),
    }


def selector_identity(selector: nn.Module) -> dict[str, Any]:
    """The same of a selector that works without a model."""
    return {
        "class": type(selector).__name__,
        "name": getattr(selector, "name", None),
        "settings": getattr(selector, "settings", None),
        **_weights(selector),
    }


def _weights(module: nn.Module) -> dict[str, Any]:
    parameter = next(module.parameters(), None)
    weights = hashlib.sha256()
    for name, few in sorted(sampled(module, lambda name: name).items()):
        weights.update(f"{name} {few.tolist()}".encode())
    return {
        "dtype": None if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "weights": weights.hexdigest()[:16],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
