"""The host inside of whatever is wrapped around it, and its BalancedTokenizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer

TOKENIZER = "balanced_tokenizer"  # the attribute under which a model holds its tokenizer
# What stands around a model, by class name -> the attribute under which it holds that.
_AROUND = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}


def base_model(model: nn.Module) -> nn.Module:
    """The host inside a PeftModel, a compiled or a distributed model; any other model itself."""
    while True:
        names = [cls.__name__ for cls in type(model).__mro__]
        if "PeftModel" in names:
            model = model.get_base_model()  # type: ignore[operator]
            continue
        inside = next((_AROUND[name] for name in names if name in _AROUND), None)
        if inside is None:
            return model
        model = getattr(model, inside)


def tokenizer_of(base: nn.Module) -> BalancedTokenizer:
    """That of a model, wrapped or native; ValueError: it has none.

    Where peft trains it whole (`modules_to_save`), the copy that it trains.
    """
    tokenizer: Any = getattr(base, TOKENIZER, None)
    copies = getattr(tokenizer, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict):
        active = [name for name in tokenizer.active_adapters if name in copies]
        off = tokenizer.disable_adapters or not active
        tokenizer = tokenizer.original_module if off else copies[active[0]]
    if not isinstance(tokenizer, BalancedTokenizer):
        raise ValueError(
            f"model: got a {type(base).__name__} without BalancedTokenizer; wrap it first"
        )
    return tokenizer
