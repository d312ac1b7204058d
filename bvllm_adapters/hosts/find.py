"""Finding the host that serves a model.

A host is an object that an installed distribution publishes under the entry-point group
`bvllm_adapters.hosts`, by the class name of the models it serves. Nothing is imported until a
model of that class is asked for. integrations/README.md says how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import numpy as np
from torch import nn

from bvllm_adapters.hosts.base import base_model
from bvllm_adapters.hosts.host import API, Host, HostError
from bvllm_adapters.weights.hub import checkpoint_of
from bvllm_adapters.weights.json_file import blamed

GROUP = "bvllm_adapters.hosts"
# What a host of an earlier version has to change.
CHANGES = {2: "look() gives FrameFeatures(cls, patches) in place of the pair, and api = 3"}
_NEXT = (
    "install the package that serves it, or pass host='module:OBJECT' "
    "(`bvllm hosts` lists what is installed, integrations/README.md says how to write one)"
)


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
    told: dict[int, str] = {}  # by id(): to read who published takes longer than all else
    found = {_info(entry, told) for entry in entry_points(group=GROUP)}
    return sorted(found, key=lambda h: (h.name, h.value))


def _info(entry: EntryPoint, told: dict[int, str]) -> HostInfo:
    dist = entry.dist
    if dist is None:
        return HostInfo(entry.name, entry.value, "an unknown distribution")
    if id(dist) not in told:
        told[id(dist)] = f"{dist.name} {dist.version}"
    return HostInfo(entry.name, entry.value, told[id(dist)])


def find_host(name: str) -> Host:
    """The host published for the model class `name`, imported now; or `name` = "module:OBJECT".

    Raises:
        HostError: unknown, published twice, broken, or written for another protocol version.
    """
    if ":" in name:
        return _import(HostInfo(name, name, "no distribution, asked for by name"))
    return published_host(name)


def published_host(name: str) -> Host:
    """The host published for the model class `name`, which may come from a file.

    Nothing is imported but what an installed distribution has published.

    Raises:
        HostError: see `find_host`.
    """
    published = list_hosts()
    claims = [info for info in published if info.name == name]
    if not claims:
        known = sorted({info.name for info in published})
        raise HostError(
            f"no host serves the model class {name}; installed hosts serve {known}; {_NEXT}"
        )
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
        raise HostError(
            f"host {info.name} ({info}) is broken: {error!r}; {_repair(info)}"
        ) from error
    api = getattr(host, "api", None)
    if api != API:
        change = f": {CHANGES[api]}" if api in CHANGES else ""
        raise HostError(
            f"host {info.name} ({info}) speaks host API {api}, this is {API}{change}; "
            f"{_repair(info)}"
        )
    wanted = [name for name in vars(Host) if not name.startswith("_")]
    missing = [name for name in ("overrides", *wanted) if not hasattr(host, name)]
    if missing:
        raise HostError(f"host {info.name} ({info}) is broken: it lacks {missing}; {_repair(info)}")
    return cast(Host, host)


def _repair(info: HostInfo) -> str:
    """What to do about a host that cannot be used."""
    if info.name == info.value:
        return "check host='module:OBJECT', or leave it out (`bvllm hosts` lists what is installed)"
    return f"update {info.distribution.split()[0]}, or uninstall it (`bvllm hosts --check` tells)"


def host_of(model: nn.Module) -> Host:
    """The host of a live model: that of the first published name among its class and bases."""
    wrapped_by: Host | None = getattr(model, "_bvllm_host", None)
    if wrapped_by is not None:
        return wrapped_by
    published = {info.name for info in list_hosts()}
    for cls in type(model).__mro__:
        if cls.__name__ in published:
            return find_host(cls.__name__)
    raise HostError(
        f"no host serves a {type(model).__name__} or a class it derives from; "
        f"installed hosts serve {sorted(published)}; {_NEXT}"
    )


def names_of(model: nn.Module) -> list[str]:
    """By which classes a model is served: the published ones among its class and bases, the
    nearest first; its own class where none is published."""
    published = {info.name for info in list_hosts()}
    names = [cls.__name__ for cls in type(model).__mro__]
    return [name for name in dict.fromkeys(names) if name in published] or names[:1]


def processor_of(model: nn.Module) -> Any:
    """Tokenizer and image processor that lie beside the checkpoint a model was loaded from, a
    folder or a hub id whose files are in the cache."""
    base = base_model(model)
    folder = checkpoint_of(str(getattr(base, "name_or_path", "") or ""))
    if folder is None:
        raise ValueError(
            "processor: got None, and the model was not loaded from a folder that still holds "
            "one; wanted processor="
        )
    host = host_of(base)
    processor = host.processor(folder)
    with blamed(f"{folder}: processor"):  # settings that it was made with, but cannot work by
        host.pixels(processor, np.zeros((1, 32, 32, 3), np.uint8))
    return processor
