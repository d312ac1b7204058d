"""Hosts: finding the one that serves a model, and putting a BalancedTokenizer into a model.

A host is an object that an installed distribution publishes under the entry-point group
`bvllm_adapters.hosts`, by the class name of the models it serves. Nothing is imported until a
model of that class is asked for. integrations/README.md says how to add one.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MethodType
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import bvllm_adapters
from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.config import BalancedTokenizerConfig, check_count
from bvllm_adapters.device import device_of
from bvllm_adapters.features import VisualTokens
from bvllm_adapters.hub import local_folder
from bvllm_adapters.language_model import tell_if_newer_than_tested
from bvllm_adapters.lora_layers import load_lora, lora_layers, put_back, save_lora, take_out

GROUP = "bvllm_adapters.hosts"
API = 2
ADAPTER_FOLDER = "bvllm_adapter"
ADAPTER_FILE = "adapter.json"
ADAPTER_FORMAT = 1
LORA_FOLDER = "lora"  # in an adapter's folder, where its language model was tuned too
TOKENIZER = "balanced_tokenizer"  # the attribute under which a model holds its tokenizer

log = logging.getLogger("bvllm_adapters")
Model = TypeVar("Model", bound=nn.Module)


class HostError(ValueError):
    """No host, a broken one, or several for one class; says which distribution is to blame."""


class Host(Protocol):
    """What a host says about the models it serves.

    Where a checkpoint brings a WordPiece vocabulary of its own for the question, the host also has
    `question_tokenizer(model, max_length) -> QuestionTokenizer`. Where its models can be trained
    here, it has `training(processor) -> HostTraining`, see `bvllm_adapters.training.host`.
    """

    api: int
    """The version of this protocol it was written for: 2."""

    overrides: type
    """A mixin whose methods replace the model's while it is wrapped; they use
    `self.balanced_tokenizer`. Each begins with a list of what it changes."""

    def load(self, folder: Path, *, dtype: torch.dtype, **options: Any) -> nn.Module:
        """The model of a published checkpoint folder, complete or an error. A host whose
        checkpoints may hold only part of a model takes `base=`, where the rest is."""

    def processor(self, folder: Path) -> Any:
        """What `pixels` and `answers` need beside the model: tokenizer and image processor."""

    def config(self, model: Any) -> BalancedTokenizerConfig:
        """Settings that fit this model: its widths, and whether its tower has a CLS token."""

    def tower(self, model: Any) -> nn.Module:
        """The vision encoder, a part of the model."""

    def pixels(
        self, processor: Any, frames: npt.NDArray[np.uint8], *, is_image: bool = False
    ) -> Tensor:
        """(k, H, W, 3) RGB frames of a video, or an image -> (k, 3, S, S) pixels of the tower."""

    def look(self, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(k, 3, S, S) pixels -> (k, C) a feature of each frame, (k, P, C) its patches.

        The feature is what the config's `frame_feature` says: the tower's CLS token, or the mean
        or maximum of the patches; `bvllm_adapters.features.frame_and_patches` takes them apart.
        """

    def answers(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[str],
        tokens: Sequence[VisualTokens],
        **generate: Any,
    ) -> list[str]:
        """What the model says to each question, of its visual tokens; in one batch. `generate`
        goes to its generate()."""


@dataclass(frozen=True)
class HostInfo:
    """A published host: model class, where its object lies, and who published it."""

    name: str
    value: str
    distribution: str

    def __str__(self) -> str:
        return f"{self.value} of {self.distribution}"


def list_hosts() -> list[HostInfo]:
    """All published hosts by model class; imports none of them."""
    return sorted(
        {_info(entry) for entry in entry_points(group=GROUP)}, key=lambda h: (h.name, h.value)
    )


def _info(entry: EntryPoint) -> HostInfo:
    dist = entry.dist
    return HostInfo(
        entry.name,
        entry.value,
        f"{dist.name} {dist.version}" if dist else "an unknown distribution",
    )


def find_host(name: str) -> Host:
    """The host published for the model class `name`, imported now; or `name` = "module:OBJECT".

    Raises:
        HostError: unknown, published twice, broken, or written for another protocol version.
    """
    if ":" in name:
        return _import(HostInfo(name, name, "no distribution, asked for by name"))
    published = list_hosts()
    claims = [info for info in published if info.name == name]
    if not claims:
        known = sorted({info.name for info in published})
        raise HostError(f"no host serves the model class {name}; installed hosts serve {known}")
    if len(claims) > 1:
        raise HostError(
            f"several hosts serve the model class {name}: {', '.join(map(str, claims))}; "
            f"uninstall all but one, or choose with host='{claims[0].value}'"
        )
    return _import(claims[0])


def _import(info: HostInfo) -> Host:
    module, _, attribute = info.value.partition(":")
    try:
        host: Any = import_module(module)
        for part in attribute.split("."):
            host = getattr(host, part)
    except Exception as error:  # whatever a foreign module raises, the message must say whose it is
        raise HostError(f"host {info.name} ({info}) is broken: {error!r}") from error
    api = getattr(host, "api", None)
    if api != API:
        raise HostError(f"host {info.name} ({info}) speaks host API {api}, this is {API}")
    wanted = [name for name in vars(Host) if not name.startswith("_")]
    missing = [name for name in ("overrides", *wanted) if not hasattr(host, name)]
    if missing:
        raise HostError(f"host {info.name} ({info}) is broken: it lacks {missing}")
    return cast(Host, host)


def host_of(model: nn.Module) -> Host:
    """The host of a live model: that of the first published name among its class and bases."""
    if isinstance(model, Wrapped):
        return model._bvllm_host
    published = {info.name for info in list_hosts()}
    names = [cls.__name__ for cls in type(model).__mro__]
    for name in names:
        if name in published:
            return find_host(name)
    raise HostError(
        f"no host serves a {names[0]} or a class it derives from; "
        f"installed hosts serve {sorted(published)}"
    )


def load(
    source: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    host: str | None = None,
) -> nn.Module:
    """A model of a known host from a folder or hub id, in eval mode; wrapped if it was saved so.

    Runs no code of the checkpoint; downloads nothing when HF_HUB_OFFLINE is set.

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
    model = find_host(host or names[0]).load(folder, dtype=dtype, **from_base).eval()
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
        tokenizer = copy.deepcopy(getattr(base, TOKENIZER))
        tokenizer.config = replace(tokenizer.config, max_tokens=max_tokens)
    else:
        tokenizer = BalancedTokenizer(config or replace(fitting, max_tokens=max_tokens))
        log.warning("the BalancedTokenizer is untrained: its weights are random, train or load one")
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
    else:  # in its place among the modules, which the order of parameters hangs on
        setattr(base, TOKENIZER, _beside_embeddings(replaced, base))
    _become(base, base._bvllm_original)
    return model


def install(base: nn.Module, host: Host, tokenizer: BalancedTokenizer) -> None:
    """Make `base` a wrapped model of this host with this tokenizer, in place."""
    replaced = getattr(base, TOKENIZER, None)
    tokenizer.train(base.training)
    if hasattr(host, "question_tokenizer"):
        most = tokenizer.config.max_question_tokens
        tokenizer.question_tokenizer = host.question_tokenizer(base, most)
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
    host, tokenizer = host_of(base), getattr(base, TOKENIZER)
    lora = take_out(base)
    unwrap(base)
    try:
        yield model
    finally:
        install(base, host, tokenizer)
        if lora is not None:
            put_back(base, lora)


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
        "bvllm_adapters": bvllm_adapters.__version__,
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
    # An older LoRA may lie where an adapter without one was written.
    return folder / LORA_FOLDER if _about(folder).get("lora") else None


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    return about
