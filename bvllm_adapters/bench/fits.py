"""Whether an answer fits a model's context and the memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bvllm_adapters.bench.counted import Setting, Work

WORKSPACE = 4  # an answer needs about as many times the bytes that its stages leave


def too_large(
    model: nn.Module, work: Mapping[str, Work], tokens: int, setting: Setting
) -> str | None:
    """Why an answer with so many visual tokens is not asked for; None: it can be."""
    config: Any = model.config
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    length = setting.text_tokens + tokens + setting.new_tokens
    if context is not None and length > context:
        return f"{length} tokens are more than the {context} of its context"
    # Frames and pixels of a chunk are gone when the next one comes.
    left = sum(done.bytes or 0 for done in work.values() if done.flops is not None)
    room = free_memory(next(model.parameters()).device)
    if room is not None and WORKSPACE * left > room:
        return f"it needs about {WORKSPACE * left / 1e9:.0f} GB, {room / 1e9:.0f} GB are free"
    return None


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device, with those that torch holds and does not use; None where the system
    does not tell."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return None
