"""What each stage trains: parts of the BalancedTokenizer, and a LoRA of the language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.hosts.adapter import lora_of
from bvllm_adapters.hosts.base import TOKENIZER, base_model, tokenizer_of
from bvllm_adapters.training.config import DEFAULT_PARTS, PARTS, TrainingConfig
from bvllm_adapters.training.lora_settings import LoraSettings
from bvllm_adapters.weights.checkpoint import check_same, read_tensors
from bvllm_adapters.weights.lora_layers import ATTRIBUTE, add_lora, copy_lora, lora_layers
from bvllm_adapters.weights.pretrained import WEIGHTS_FILE


def choose_parameters(model: nn.Module, config: TrainingConfig) -> None:
    """Make exactly what the config names trainable, in float32; LoRA layers are put in for it.

    An adapter that the model was wrapped with is copied in once more: wrapping gave it the model's
    dtype, and none of its digits may be lost.

    Raises:
        ValueError: for LoRA targets that the model lacks, or a LoRA of another rank.
    """
    base = base_model(model)
    base.requires_grad_(False)
    tokenizer = tokenizer_of(base).float()
    for part in trained_parts(tokenizer, config):
        getattr(tokenizer, part).requires_grad_(True)
    if config.lora is not None:
        _train_lora(base, config.lora)
    if config.adapter is not None:
        restore(base, config.adapter)


def trained_parts(tokenizer: BalancedTokenizer, config: TrainingConfig) -> list[str]:
    """Those of the config's that the tokenizer has, with weights to be trained.

    Raises:
        ValueError: one that was asked for is not there, or none is and nothing else is trained.
    """
    parts = {part: getattr(tokenizer, part) for part in PARTS}
    if tokenizer.chooses_untrained:
        del parts["frame_selector"]
    there = [part for part, stage in parts.items() if any(True for _ in _weights(stage))]
    missing = [part for part in config.train if part not in there]
    by_default = config.train in (PARTS, DEFAULT_PARTS)
    if (missing and not by_default) or (not set(there) & set(config.train) and not config.lora):
        raise ValueError(
            f"train: got {missing}, of which the tokenizer has no weights, wanted some of {there}; "
            "see tokenizer: selector, sampler and projection"
        )
    return [part for part in config.train if part in there]


def _weights(stage: nn.Module | None) -> Iterator[nn.Parameter]:
    yield from () if stage is None else stage.parameters()


def _train_lora(base: nn.Module, settings: LoraSettings) -> None:
    if not lora_layers(base):
        add_lora(
            base,
            decoder_linears(base, settings.targets),
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
        )
    for name, layer in lora_layers(base).items():
        layer.float().requires_grad_(True)
        if layer.rank != settings.rank:
            raise ValueError(f"lora.rank: got {settings.rank}, wanted {layer.rank} as {name} has")


def decoder_linears(model: Any, ends: tuple[str, ...] | None = None) -> list[str]:
    """Names of the linear layers in the decoder of a model's language model.

    The decoder is the module that embeds the words and has `layers`, as all of transformers' do.

    Args:
        ends: only names that end in one of these; None: all.

    Raises:
        ValueError: for a model without such a decoder, or an end that no name has.
    """
    embeddings = model.get_input_embeddings()
    decoders = [
        name
        for name, module in model.named_modules()
        if any(child is embeddings for child in module.children()) and hasattr(module, "layers")
    ]
    if len(decoders) != 1:
        raise ValueError(
            f"model: got {len(decoders)} modules with word embeddings and layers, wanted one"
        )
    prefix = f"{decoders[0]}.layers." if decoders[0] else "layers."
    names = [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    ]
    for end in ends or ():
        if not any(f".{name}".endswith(f".{end}") for name in names):
            kinds = sorted({name.rpartition(".")[2] for name in names})
            raise ValueError(f"lora.targets: got {end!r}, wanted some of {kinds}")
    if ends is None:
        return names
    return [name for name in names if any(f".{name}".endswith(f".{end}") for end in ends)]


@torch.no_grad()
def restore(model: nn.Module, adapter: str | Path) -> None:
    """A saved adapter's weights into the tokenizer, and the LoRA, that a model has.

    Raises:
        CheckpointError: for weights that are missing, unexpected or of another shape.
    """
    base = base_model(model)
    file = Path(adapter) / WEIGHTS_FILE
    saved = dict(read_tensors([file]))
    tokenizer = tokenizer_of(base)
    apart = tokenizer.parts_apart()  # not trained
    ours = {n: v for n, v in tokenizer.state_dict().items() if n.partition(".")[0] not in apart}
    check_same(file, "the model's tokenizer", ours, saved)
    for name, tensor in ours.items():
        tensor.copy_(saved[name])
    lora = lora_of(adapter)
    if lora is not None:
        copy_lora(base, lora)


def parameter_counts(model: nn.Module) -> list[tuple[str, int, int]]:
    """(part, trained, all) parameters: of each part of the tokenizer, the LoRA, and the rest."""
    trained: Counter[str] = Counter()
    present: Counter[str] = Counter()
    for name, parameter in base_model(model).named_parameters():
        before, _, inside = name.partition(f"{TOKENIZER}.")
        part = "host"
        if inside and not before:
            part = inside.partition(".")[0]
        elif f".{ATTRIBUTE}." in name:
            part = "lora"
        present[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    return [(part, trained[part], present[part]) for part in present]
