"""The model that a command is about: the demo's, or one from a folder or the hub, with a budget."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from bvllm_adapters.cli.placement import placement
from bvllm_adapters.cli.selecting import asked_selector
from bvllm_adapters.hosts.base import TOKENIZER
from bvllm_adapters.hosts.find import find_host, host_of, processor_of
from bvllm_adapters.hosts.load import load
from bvllm_adapters.hosts.wrap import unwrap, wrap
from bvllm_adapters.hosts.wrapped import Wrapped


def needs_training(model: Any) -> bool:
    """Whether a new tokenizer of a model's host is of random weights that mean nothing."""
    config = host_of(model).config(model)
    return config.selector == "learned" or config.sampler != "none"


def model_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """`asked_model` of a command's options: --model, --adapter, --untrained, --selector, --scout,
    --max-tokens, --device, --dtype."""
    device, dtype = placement(options)
    settings: dict[str, Any] = {}
    if options.selector is not None or options.scout is not None:
        settings["selector"] = asked_selector(options.selector, options.scout, device, dtype)
    if options.max_tokens is not None:
        settings["max_tokens"] = options.max_tokens
    return asked_model(
        options.model,
        options.adapter,
        untrained=options.untrained,
        dtype=dtype,
        device=device,
        **settings,
    )


def asked_model(
    source: str | None,
    adapter: str | None = None,
    *,
    untrained: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> tuple[Any, Any]:
    """A model with a BalancedTokenizer, and its processor.

    Args:
        source: folder or hub id; None: the demo's model.
        adapter: folder or hub id of what `save_adapter` or training wrote, in place of what the
            model has.
        untrained: whether a model without either may have a new tokenizer, of random weights.
        settings: max_tokens and a selector, of a model without either; see `wrap`.

    Raises:
        CheckpointError, HostError, ValueError: see `load` and `wrap`; a model without a trained
            tokenizer, unless `untrained`.
    """
    disable_progress_bar()
    if source is None:
        native: Any = find_host("BvllmQwen2ForConditionalGeneration")
        model, processor = native.demo()
        model.to(dtype)
    else:
        model = load(source, dtype=dtype)
        processor = processor_of(model)
    wrapped = isinstance(model, Wrapped)
    if "selector" in settings and (adapter is not None or hasattr(model, TOKENIZER)):
        raise ValueError("--selector: got one for a model that has a tokenizer, wanted none")
    if adapter is not None:
        if wrapped:
            unwrap(model)
        wrap(model, adapter=adapter)
    elif not hasattr(model, TOKENIZER):
        if needs_training(model) and not untrained:
            raise ValueError(
                f"--model: got {source}, which has no BalancedTokenizer yet; wanted --adapter with "
                "one that was trained (`bvllm train` does that), or --untrained to ask by random "
                "weights, whose answers mean nothing"
            )
        wrap(model, **settings)
    return model.to(device), processor
