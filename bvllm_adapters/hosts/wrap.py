"""Putting a BalancedTokenizer into a model, in place, and taking it out again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.checks import check_count
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.hosts.adapter import load_adapter
from bvllm_adapters.hosts.base import TOKENIZER, base_model, tokenizer_of
from bvllm_adapters.hosts.find import find_host, host_of
from bvllm_adapters.hosts.host import Host
from bvllm_adapters.hosts.language_model import tell_if_newer_than_tested
from bvllm_adapters.hosts.wrapped import Wrapped, become, wrapped_class
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.lora_layers import (
    load_lora,
    lora_layers,
    merge,
    put_back,
    take_out,
)

# Kept on a wrapped model out of nn.Module's books: no part of it, and not in its state_dict.
_HELD = ("_bvllm_replaced", "_bvllm_dtype")

log = logging.getLogger("bvllm_adapters")
Model = TypeVar("Model", bound=nn.Module)


def wrap(
    model: Model,
    *,
    max_tokens: int | None = None,
    config: BalancedTokenizerConfig | None = None,
    adapter: str | Path | None = None,
    host: str | None = None,
    revision: str | None = None,
    strict: bool = True,
    **settings: Any,
) -> Model:
    """Put a BalancedTokenizer into a model, in place; returns the same object.

    Args:
        model: of a published host; a PeftModel is wrapped through its base model.
        max_tokens: budget of visual tokens per prompt; None: that of the adapter, of a native
            model, or of a config; a new tokenizer has none.
        config: a new tokenizer of these settings, with random weights.
        adapter: a folder or hub id that `save_adapter` filled; its LoRA is put in too, if it has
            one, and `unwrap` takes it out.
        host: "module:OBJECT" instead of the published host.
        revision: of an adapter from the hub: branch, tag or commit.
        strict: False: an adapter that was trained beside other weights than the model's, by a few
            values of each, is a warning and not an error.
        settings: fields of `BalancedTokenizerConfig`, such as num_frames=64: of a new tokenizer,
            whose other fields fit the model. Without any a native model's own weights go on.
            `selector` may be a module too, see `bvllm_adapters.selectors`; beside an adapter, the
            one of one's own that it was saved with.

    Raises:
        HostError: no fitting host. CheckpointError: an adapter that cannot be read. ValueError:
        wrapped already, arguments that contradict each other, or an adapter of another host, other
        weights or other widths. The model is unchanged then, whatever is raised.
    """
    tell_if_newer_than_tested()
    base = base_model(model)
    if isinstance(base, Wrapped):
        raise ValueError("model: got a wrapped model, wanted one that is not; unwrap it first")
    if max_tokens is not None:
        settings["max_tokens"] = check_count("max_tokens", max_tokens)
    if settings.get("vocabulary") is not None:
        settings.setdefault("vocab_size", len(settings["vocabulary"]))
    _check_arguments(config, adapter, settings, revision)
    served_by = find_host(host) if host is not None else host_of(base)
    fitting = served_by.config(base)

    lora = None
    stages, settings = given_selector(settings)
    if adapter is not None:
        read = load_adapter(adapter, base, revision=revision, strict=strict, **stages)
        settings = {name: value for name, value in settings.items() if name == "max_tokens"}
        tokenizer, lora = read.tokenizer, read.lora
        tokenizer.config = replace(tokenizer.config, **settings)
    elif config is None and hasattr(base, TOKENIZER) and set(settings) <= {"max_tokens"}:
        # A native model: its own weights go on.
        tokenizer = copy.deepcopy(tokenizer_of(base))
        tokenizer.config = replace(tokenizer.config, **settings)
    else:
        tokenizer = BalancedTokenizer(config or new_config(fitting, settings), **stages)
        if any(True for _ in tokenizer.trained_parameters()):
            log.warning(
                "the BalancedTokenizer is untrained: its weights are random, train or load one"
            )
    tokenizer.config = tokenizer.config.with_words_of(fitting)
    for name in ("vision_width", "llm_width"):
        got, wanted = getattr(tokenizer.config, name), getattr(fitting, name)
        if got != wanted:
            raise ValueError(f"{name}: got {got}, wanted {wanted} as the model has")
    tokenizer.train(base.training)
    _install(base, served_by, tokenizer, lora)
    return model


def new_config(
    fitting: BalancedTokenizerConfig, settings: dict[str, Any]
) -> BalancedTokenizerConfig:
    """What fits the model, with the caller's settings. Numbers of learned stages that neither says,
    as without training they follow from the budget, are the paper's."""
    own = {}
    for name, stage, learned in (
        ("num_frames", "selector", "learned"),
        ("tokens_per_frame", "sampler", "qformer"),
    ):
        is_learned = settings.get(stage, getattr(fitting, stage)) == learned
        if is_learned and settings.get(name, getattr(fitting, name)) is None:
            own[name] = getattr(BalancedTokenizerConfig, name)
    return replace(fitting, **{**settings, **own})


def given_selector(settings: dict[str, Any]) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """A selector that was given as a module: as the stage it is, and as the config names it."""
    selector = settings.get("selector")
    if not isinstance(selector, nn.Module):
        return {}, settings
    name = getattr(selector, "name", "custom")
    own = dict(getattr(selector, "settings", {}))
    named = {**settings, "selector": name, "selector_settings": own}
    return {"frame_selector": selector}, named


def unwrap(model: Model) -> Model:
    """Take the tokenizer out again, in place: class, weights and outputs are as before `wrap`, in
    the mode the model is in now. What others have put into it, such as peft's layers, stays.

    Raises:
        ValueError: for a model that is not wrapped.
    """
    base = base_model(model)
    if not isinstance(base, Wrapped):
        raise ValueError(
            f"model: got a {type(base).__name__} that is not wrapped, wanted one that is"
        )
    replaced = base._bvllm_replaced
    dtype = base.__dict__["_bvllm_dtype"]
    if replaced is not None:
        replaced.train(base.training)
        # Where the words are now. In another dtype only if the model itself has changed to one.
        embeddings = _embeddings(base)
        replaced.to(device_of(embeddings))
        if embeddings.weight.dtype != dtype:
            replaced.to(embeddings.weight.dtype)
    _uninstall(base, replaced)
    return model


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """The model without its wrapping inside the block; with the same wrapping after it."""
    base: Any = base_model(model)
    held = {name: base.__dict__[name] for name in _HELD}
    cls, tokenizer, lora = type(base), getattr(base, TOKENIZER), lora_layers(base)
    unwrap(base)
    try:
        yield model
    finally:
        setattr(base, TOKENIZER, tokenizer)
        base.__dict__.update(held)
        become(base, cls)
        put_back(base, lora)


def merge_lora(model: Model) -> Model:
    """Add an adapter's LoRA to the weights of the language model, in place, for good.

    It costs nothing to run from then on, and `unwrap` cannot take it out any more. An adapter that
    is saved afterwards has no LoRA and belongs to the merged weights.

    Raises:
        ValueError: for a model that is not wrapped, and for packed or offloaded weights.
    """
    base = base_model(model)
    if not isinstance(base, Wrapped):
        raise ValueError(
            f"model: got a {type(base).__name__} that is not wrapped, wanted one that is"
        )
    merge(base)
    return model


def _check_arguments(
    config: BalancedTokenizerConfig | None,
    adapter: str | Path | None,
    settings: dict[str, Any],
    revision: str | None,
) -> None:
    known = [each.name for each in fields(BalancedTokenizerConfig)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise TypeError(f"wrap: got {unknown}, wanted arguments of wrap, or some of {known}")
    if config is not None and (adapter is not None or settings):
        named = ", ".join(["adapter"] * (adapter is not None) + sorted(settings))
        raise ValueError(f"config: got it beside {named}, wanted one way to set up")
    if adapter is None and revision is not None:
        raise ValueError(f"revision: got {revision!r} without adapter, wanted that of an adapter")
    again = {"selector"} if isinstance(settings.get("selector"), nn.Module) else set()
    fixed = sorted(set(settings) - {"max_tokens"} - again)
    if adapter is not None and fixed:
        raise ValueError(f"{fixed[0]}: got it beside adapter, which has its own, wanted max_tokens")


def _install(base: nn.Module, host: Host, tokenizer: BalancedTokenizer, lora: Path | None) -> None:
    """Make `base` a wrapped model of this host with this tokenizer, in place; as it was before if
    anything is raised."""
    replaced = getattr(base, TOKENIZER, None)
    cls = wrapped_class(type(base), host)
    embeddings = _embeddings(base)
    tokenizer.to(device_of(embeddings), embeddings.weight.dtype)
    try:
        setattr(base, TOKENIZER, tokenizer)
        base.__dict__["_bvllm_replaced"] = replaced
        base.__dict__["_bvllm_dtype"] = embeddings.weight.dtype
        become(base, cls)
        if lora is not None:
            load_lora(base, lora)
    except BaseException:  # a Ctrl-C too
        _uninstall(base, replaced)
        raise


def _uninstall(base: nn.Module, replaced: nn.Module | None) -> None:
    """The reverse of `_install`, of however much of it was done."""
    take_out(base)
    if replaced is not None:  # set over the other, so that the order of modules stays
        setattr(base, TOKENIZER, replaced)
    elif hasattr(base, TOKENIZER):
        delattr(base, TOKENIZER)
    if isinstance(base, Wrapped):
        become(base, base._bvllm_original)
    for name in _HELD:
        base.__dict__.pop(name, None)


def _embeddings(base: Any) -> Any:
    """Beside which the tokenizer is, and in whose dtype."""
    return base.get_input_embeddings()
