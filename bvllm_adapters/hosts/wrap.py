"""Putting a BalancedTokenizer into a model, in place, and taking it out again."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.checks import check_count
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.hosts.adapter import (
    TOKENIZER,
    base_model,
    load_adapter,
    lora_of,
    save_adapter,
    tokenizer_of,
)
from bvllm_adapters.hosts.find import find_host, host_of, published_host
from bvllm_adapters.hosts.host import Host, HostError
from bvllm_adapters.hosts.language_model import tell_if_newer_than_tested
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.hub import local_folder
from bvllm_adapters.weights.lora_layers import load_lora, put_back, take_out

ADAPTER_FOLDER = "bvllm_adapter"

log = logging.getLogger("bvllm_adapters")
Model = TypeVar("Model", bound=nn.Module)


def load(
    source: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    host: str | None = None,
) -> Any:
    """A model of a known host from a folder or hub id, in eval mode; wrapped if it was saved so.

    Runs no code of the checkpoint; downloads nothing when HF_HUB_OFFLINE is set. Which class the
    model is of stands in the checkpoint, so type checkers are told nothing of it.

    Args:
        base: folder or hub id of the model that a LoRA or projector-only folder changes, where
            its config.json does not say.
        dtype: of all weights. host: "module:OBJECT" instead of the published one.
    """
    tell_if_newer_than_tested()
    folder = local_folder(source, "config.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    if host is None and not names:
        raise HostError(f"{folder / 'config.json'} names no architectures, so no host can be found")
    from_base = {} if base is None else {"base": base}
    served_by = published_host(str(names[0])) if host is None else find_host(host)
    model = served_by.load(folder, dtype=dtype, **from_base).eval()
    if (folder / ADAPTER_FOLDER).is_dir():
        wrap(model, adapter=folder / ADAPTER_FOLDER, host=host)
    return model


class Wrapped:
    """Mixin of a wrapped model's class."""

    _bvllm_host: Host
    _bvllm_original: type[nn.Module]
    _bvllm_replaced: nn.Module | None  # on the instance: the tokenizer a native model had before

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Modifications: writes the host in its own layout, as if it were not wrapped, and the
        adapter into the folder `bvllm_adapter` beside it; `load` finds both."""
        assert isinstance(self, nn.Module)
        kwargs.pop("state_dict", None)  # a Trainer's, which mixes host and adapter
        with unwrapped(self):
            self.save_pretrained(save_directory, **kwargs)
        save_adapter(self, Path(save_directory) / ADAPTER_FOLDER)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the class and host that its own class, which no module has, is made of."""
        return _unpickled, (self._bvllm_original, self._bvllm_host), self.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Of the same class and host."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def wrap(
    model: Model,
    *,
    max_tokens: int | None = None,
    config: BalancedTokenizerConfig | None = None,
    adapter: str | Path | None = None,
    host: str | None = None,
) -> Model:
    """Put a BalancedTokenizer into a model, in place; returns the same object.

    Args:
        model: of a published host; a PeftModel is wrapped through its base model.
        max_tokens: budget of visual tokens per prompt; with `adapter`, in place of its own.
        config: a new tokenizer of these settings, with random weights.
        adapter: a folder or hub id that `save_adapter` filled; its LoRA is put in too, if it has
            one, and `unwrap` takes it out.
        host: "module:OBJECT" instead of the published host.

    Raises:
        HostError: no fitting host. ValueError: wrapped already, arguments that contradict each
        other, or an adapter of another host or other widths. The model is unchanged then.
    """
    tell_if_newer_than_tested()
    base = base_model(model)
    if isinstance(base, Wrapped):
        raise ValueError("model: got a wrapped model, wanted one that is not; unwrap it first")
    if config is not None and (adapter is not None or max_tokens is not None):
        raise ValueError("config: got it beside adapter or max_tokens, wanted one way to set up")
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)
    served_by = find_host(host) if host is not None else host_of(base)

    fitting = served_by.config(base)

    if adapter is not None:
        tokenizer = load_adapter(adapter, type(base).__name__)
        if max_tokens is not None:
            tokenizer.config = replace(tokenizer.config, max_tokens=max_tokens)
    elif config is None and hasattr(base, TOKENIZER):  # a native model: its own weights go on
        tokenizer = copy.deepcopy(tokenizer_of(base))
        tokenizer.config = replace(tokenizer.config, max_tokens=max_tokens)
    else:
        tokenizer = BalancedTokenizer(config or replace(fitting, max_tokens=max_tokens))
        log.warning("the BalancedTokenizer is untrained: its weights are random, train or load one")
    tokenizer.config = tokenizer.config.with_words_of(fitting)
    for name in ("vision_width", "llm_width"):
        got, wanted = getattr(tokenizer.config, name), getattr(fitting, name)
        if got != wanted:
            raise ValueError(f"{name}: got {got}, wanted {wanted} as the model has")

    install(base, served_by, tokenizer)
    lora = None if adapter is None else lora_of(adapter)
    if lora is not None:
        try:
            load_lora(base, lora)
        except Exception:
            unwrap(model)
            raise
    return model


def unwrap(model: Model) -> Model:
    """Take the tokenizer out again, in place: class, weights and outputs are as before `wrap`.

    Raises:
        ValueError: for a model that is not wrapped.
    """
    base = base_model(model)
    if not isinstance(base, Wrapped):
        raise ValueError(
            f"model: got a {type(base).__name__} that is not wrapped, wanted one that is"
        )
    take_out(base)
    replaced = base.__dict__.pop("_bvllm_replaced")
    if replaced is None:
        delattr(base, TOKENIZER)
    else:  # set over the other, so that the order of modules, and of parameters, stays
        setattr(base, TOKENIZER, _beside_embeddings(replaced, base))
    _become(base, base._bvllm_original)
    return model


def install(base: nn.Module, host: Host, tokenizer: BalancedTokenizer) -> None:
    """Make `base` a wrapped model of this host with this tokenizer, in place."""
    replaced = getattr(base, TOKENIZER, None)
    tokenizer.train(base.training)
    setattr(base, TOKENIZER, _beside_embeddings(tokenizer, base))
    # Kept out of nn.Module's books: it is no part of the wrapped model and not in its state_dict.
    base.__dict__["_bvllm_replaced"] = replaced
    cls: Any = type(base)
    _become(base, _wrapped_class(cls, cast(Any, host)))


def _become(base: Any, cls: Any) -> None:
    """Change the class of a model. accelerate's hooks keep a class's forward on the instance, in
    whose stead that of the new class must be kept then."""
    before = type(base)
    base.__class__ = cls
    for name in ("forward", "_old_forward"):
        if getattr(base.__dict__.get(name), "__func__", None) is before.forward:
            base.__dict__[name] = MethodType(cls.forward, base)


@cache
def _wrapped_class(cls: Any, host: Any) -> Any:
    """A thin subclass under the same name, by which checkpoints and hosts are known."""
    body = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_bvllm_host": host,
        "_bvllm_original": cls,
    }
    return type(cls.__name__, (Wrapped, host.overrides, cls), body)


def _unpickled(cls: Any, host: Any) -> Any:
    """An empty model of a wrapped class."""
    wrapped = _wrapped_class(cls, host)
    return wrapped.__new__(wrapped)


def _beside_embeddings(tokenizer: nn.Module, base: nn.Module) -> nn.Module:
    """Moved to where, and in what dtype, the language model embeds its words."""
    embeddings = base.get_input_embeddings()  # type: ignore[operator]
    return tokenizer.to(device_of(embeddings), embeddings.weight.dtype)


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """The model without its wrapping inside the block; with the same wrapping after it."""
    base = base_model(model)
    host, tokenizer = host_of(base), tokenizer_of(base)
    lora = take_out(base)
    unwrap(base)
    try:
        yield model
    finally:
        install(base, host, tokenizer)
        if lora is not None:
            put_back(base, lora)
