"""What tells results of one model from those of another."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.find import names_of
from bvllm_adapters.weights.sampled import sampled


def model_identity(base: nn.Module) -> dict[str, Any]:
    """By what results of one model are told from those of another: its class, its tokenizer's
    settings, and a few values of each weight; as JSON."""
    config = tokenizer_of(base).config.to_dict()
    words = config.pop("vocabulary", None)
    config["vocabulary"] = None if words is None else _digest("\n".join(map(str, words)))
    values = sampled(base, lambda name: name)
    weights = hashlib.sha256()
    for name, few in sorted(values.items()):
        weights.update(f"{name} {few.tolist()}".encode())
    parameter = next(base.parameters(), None)
    return {
        "class": names_of(base)[0],
        "dtype": None if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "tokenizer": config,
        "weights": weights.hexdigest()[:16],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
