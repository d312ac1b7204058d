"""Settings of the language model's LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bvllm_adapters.checks import check_count, check_names, check_number, several


@dataclass(frozen=True)
class LoraSettings:
    """Of the language model in instruction tuning; the defaults are the paper's (7.1).

    Args:
        rank, alpha: r, 65,536 at most, and alpha of LoRA.
        dropout: before it. Above 0, the noise depends on how many devices share a step.
        targets: names of layers, or their ends; None: all linear layers of the decoder.
    """

    rank: int = 128
    alpha: float = 256
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_count("lora.rank", self.rank, most=2**16)
        check_number("lora.alpha", self.alpha, above=0)
        check_number("lora.dropout", self.dropout, least=0, below=1)
        if self.targets is not None:
            object.__setattr__(self, "targets", several("lora.targets", self.targets))


def lora_settings(given: Any) -> LoraSettings:
    """Of plain values by name; an unknown name is a ValueError."""
    if isinstance(given, LoraSettings):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"lora: got {given!r}, wanted settings by name")
    check_names(given, [each.name for each in fields(LoraSettings)], ())
    return LoraSettings(**given)
