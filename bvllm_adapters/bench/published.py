"""Hosts in the sizes that were published, with random weights: their work, without a download."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from bvllm_adapters.hosts.adapter import TOKENIZER
from bvllm_adapters.hosts.find import find_host, list_hosts
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.hosts.wrap import wrap


def hosts_with_sizes() -> dict[str, Any]:
    """The installed hosts that say in which sizes their models were published, by model class."""
    found: dict[str, Any] = {}
    for name in {info.name for info in list_hosts()}:
        try:
            host: Any = find_host(name)
        except HostError:  # told when that one is asked for
            continue
        if name in getattr(host, "published", {}):
            found[name] = host
    return found


def build(
    name: str,
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    sizes: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """A native or wrapped model in eval mode, and a processor whose words mean nothing to it.

    Args:
        name: class of the model, of a host that publishes sizes.
        device: "meta": no weights, just their shapes.
        sizes: fields of its config that are to differ from what was published.

    Raises:
        ValueError: for a class whose published sizes are not known.
    """
    hosts = hosts_with_sizes()
    if name not in hosts:
        raise ValueError(f"host: got {name!r}, wanted one of {sorted(hosts)}")
    host = hosts[name]
    model_class, config, processor = host.parts(name, {**host.published[name], **(sizes or {})})
    with torch.device(device), default_dtype(dtype):
        model = model_class(config)
        if not hasattr(model, TOKENIZER):
            wrap(model)
    model.eval().requires_grad_(False)
    return model, processor


def weights_bytes(model: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Weights that are made inside are of this dtype from the beginning."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
