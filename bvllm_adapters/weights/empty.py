"""Models without weights, to be filled: made in no time and no memory, whatever their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)

# What constructors make large weights of. Buffers are computed, not made so.
_MADE = {torch.empty, torch.rand, torch.randn}
# What they draw first weights by, for nothing here.
_DRAWN = {
    getattr(torch.Tensor, name)
    for name in "normal_ uniform_ random_ bernoulli_ exponential_ log_normal_ cauchy_".split()
}


def without_weights(make: Callable[[], Model]) -> Model:
    """The model that `make` makes, its weights on the meta device, its computed buffers in place.

    Only this thread is concerned, and torch's generator stays as it is. `torch.device("meta")`
    would leave out the buffers too, and accelerate's `init_empty_weights` changes torch.nn for all
    threads.
    """
    with _Empty():
        model = make()
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if not weight.is_meta:  # a small one, as of zeros or ones
                empty = torch.empty_like(weight, device="meta")
                setattr(module, name, nn.Parameter(empty, requires_grad=weight.requires_grad))
    return model


class _Empty(TorchFunctionMode):
    """What is made inside of `torch.device("cpu")` is made there, but for its first weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _MADE and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        elif func in _DRAWN:
            return args[0]
        return func(*args, **kwargs)
