"""The class of a wrapped model: a thin subclass of its own, with what the host overrides."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor, nn

from bvllm_adapters.hosts.adapter import save_adapter
from bvllm_adapters.hosts.base import TOKENIZER, tokenizer_of
from bvllm_adapters.hosts.find import names_of, processor_of, published_host
from bvllm_adapters.hosts.host import Host, HostError
from bvllm_adapters.weights.hub import upload
from bvllm_adapters.weights.lora_layers import ATTRIBUTE
from bvllm_adapters.weights.whole import saved_whole

ADAPTER_FOLDER = "bvllm_adapter"  # in a saved model's folder

_CHECKPOINT = re.compile(r"checkpoint-\d+")  # a Trainer's folders that it resumes from

log = logging.getLogger("bvllm_adapters")


class Wrapped:
    """Mixin of a wrapped model's class."""

    _bvllm_host: Host
    _bvllm_original: type[nn.Module]
    _bvllm_replaced: nn.Module | None  # on the instance: the tokenizer a native model had before

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Modifications:
        - The host is written in its own layout, as if it were not wrapped, the adapter into the
          folder `bvllm_adapter` beside it; `load` finds both. The processor goes along, if it lies
          where the model was loaded from.
        - All of it is there in the end, or what was there before still is.
        - In a Trainer's folders `checkpoint-N` the weights are all that the model has, so that the
          Trainer can resume from them.

        Raises:
            ValueError: for a model with peft's layers in it, and for push_to_hub.
        """
        model: Any = self
        if kwargs.pop("push_to_hub", False):
            raise ValueError("push_to_hub: got True, wanted model.push_to_hub(repo_id)")
        if not kwargs.get("is_main_process", True):
            return
        # A Trainer's, which may have been gathered from several devices.
        given = kwargs.pop("state_dict", None)
        live = model.state_dict() if given is None else given
        resumable = _CHECKPOINT.fullmatch(Path(save_directory).absolute().name) is not None
        state = live if resumable else self._host_state(live)
        with saved_whole(save_directory) as new:
            super().save_pretrained(new, state_dict=state, **kwargs)  # type: ignore[misc]
            if resumable and self._bvllm_replaced is not None:
                config = copy.deepcopy(model.config)  # a native model's, which says its tokenizer
                setattr(config, TOKENIZER, tokenizer_of(model).config.to_dict())
                config.save_pretrained(new)
            save_adapter(model, new / ADAPTER_FOLDER)
            try:
                processor_of(model).save_pretrained(new)
            except (OSError, ValueError) as error:
                log.info("%s: no processor was saved: %s", save_directory, error)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Modifications: all that `save_pretrained` writes, folders in folders too; returns the
        address."""
        return upload(self.save_pretrained, repo_id, private=private)

    def _host_state(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the host would have without its wrapping."""
        host = {name: value for name, value in live.items() if f".{ATTRIBUTE}." not in name}
        peft = sorted(name for name in host if ".lora_" in name or ".base_layer." in name)
        if peft:
            raise ValueError(
                f"model: got peft's layers in it ({peft[0]}), wanted them merged or taken out "
                "(merge_and_unload(), unload()), or the PeftModel's own save_pretrained()"
            )
        before = {} if self._bvllm_replaced is None else self._bvllm_replaced.state_dict()
        ours = {name: value for name, value in host.items() if name.startswith(f"{TOKENIZER}.")}
        return {name: value for name, value in host.items() if name not in ours} | {
            f"{TOKENIZER}.{name}": value for name, value in before.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the class and host that its own class, which no module has, is made of."""
        return _unpickled, (self._bvllm_original, _by_name(self)), self.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Of the same class and host."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def become(base: Any, cls: Any) -> None:
    """Change the class of a model. accelerate's hooks keep a class's forward on the instance, in
    whose stead that of the new class must be kept then."""
    before = type(base)
    base.__class__ = cls
    for name in ("forward", "_old_forward"):
        if getattr(base.__dict__.get(name), "__func__", None) is before.forward:
            base.__dict__[name] = MethodType(cls.forward, base)


_classes: dict[tuple[type, int], Any] = {}  # the host by its id, as it need not be hashable


def wrapped_class(cls: Any, host: Any) -> Any:
    """A thin subclass under the same name, by which checkpoints and hosts are known; one for each
    class and host."""
    body = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_bvllm_host": host,
        "_bvllm_original": cls,
    }
    # setdefault, so that two threads get one class. It keeps the host, whose id stays its own.
    key = cls, id(host)
    if key not in _classes:
        _classes.setdefault(key, type(cls.__name__, (Wrapped, host.overrides, cls), body))
    return _classes[key]


def _by_name(model: Any) -> Any:
    """The class by which a model's host is published; the host itself if it is not."""
    name = names_of(model)[0]
    try:
        return name if published_host(name) is model._bvllm_host else model._bvllm_host
    except HostError:
        return model._bvllm_host


def _unpickled(cls: Any, host: Any) -> Any:
    """An empty model of a wrapped class."""
    wrapped = wrapped_class(cls, published_host(host) if isinstance(host, str) else host)
    return wrapped.__new__(wrapped)
