"""Hosts in the sizes that were published, with random weights: their work, without a download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bvllm_adapters.hosts.base import TOKENIZER
from bvllm_adapters.hosts.find import find_host, list_hosts
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.hosts.wrap import wrap
from bvllm_adapters.weights.empty import without_weights


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
    model = random_model(lambda: model_class(config), device, dtype)
    if not hasattr(model, TOKENIZER):
        with torch.device(device):
            wrap(model)
    model.eval().requires_grad_(False)
    return model, processor


def random_model(make: Callable[[], Any], device: torch.device | str, dtype: torch.dtype) -> Any:
    """The model that `make` makes, with random weights that are made where they are to be and in
    their dtype from the beginning."""
    model = without_weights(make)
    filled: dict[int, torch.nn.Parameter] = {}  # by what they stand for, as some may be tied
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in filled:
                made = torch.empty(weight.shape, device=device, dtype=dtype)
                made = made.normal_(std=0.02) if weight.dim() > 1 else made.fill_(1)
                filled[id(weight)] = torch.nn.Parameter(made)
            setattr(module, name, filled[id(weight)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            computed = torch.zeros(buffer.shape) if buffer.is_meta else buffer
            module.register_buffer(
                name, computed.to(device), name not in module._non_persistent_buffers_set
            )
    return model


def weights_bytes(model: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters())
