"""A tiny model of each host with its processor, and a small tokenizer for it, all random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bvllm_adapters as bvllm
from bvllm_adapters.hosts.find import find_host, host_of


def native(folder: Path) -> tuple[Any, Any]:
    from bvllm_qwen2.tiny import tiny_model

    return tiny_model()


def videollama2(folder: Path) -> tuple[Any, Any]:
    from bvllm_videollama2.tiny import tiny_checkpoint

    tiny_checkpoint(folder)
    host = find_host("bvllm_videollama2:HOST")
    return bvllm.load(folder, host="bvllm_videollama2:HOST"), host.processor(folder)


def llama_vid(folder: Path) -> tuple[Any, Any]:
    from bvllm_llama_vid.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(folder)
    host = find_host("bvllm_llama_vid:HOST")
    return bvllm.load(folder, host="bvllm_llama_vid:HOST"), host.processor(folder)


SMALL: dict[str, Any] = {
    "num_frames": 4, "tokens_per_frame": 3, "max_tokens": 9, "qformer_width": 24,
    "qformer_layers": 2, "qformer_heads": 2, "qformer_ffn_width": None,
}  # fmt: skip
TINY_HOSTS = [native, videollama2, llama_vid]


def wrap_small(model: Any, **settings: Any) -> Any:
    """Its weights are louder than those it would begin training with, so that questions matter."""
    bvllm.wrap(model, config=replace(host_of(model).config(model), **(SMALL | settings)))
    torch.manual_seed(0)
    for weights in model.balanced_tokenizer.parameters():
        if weights.dim() > 1:
            nn.init.normal_(weights, std=0.15)
    return model.eval()


def beside_processor(make: Any, folder: Path) -> Any:
    """The tiny model that `make` makes, loaded from this folder, where its processor lies too."""
    model, processor = make(folder)
    if not (folder / "config.json").is_file():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        model = bvllm.load(folder)
    return model


def pair_of(served_by: Any, model: nn.Module) -> Any:
    """What a host's look gives, as `encode_pixels` takes it: (k, C) features, (k, P, C) patches."""

    def look(pixels: torch.Tensor) -> tuple[torch.Tensor, Any]:
        seen = served_by.look(model, pixels)
        return seen.cls, seen.patches

    return look
