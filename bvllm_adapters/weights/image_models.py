"""Image models of timm's and transformers', by names and settings that may stand in a file.

Both libraries take far more than sizes: weights to download, files to load, code of the hub. So
only what describes the model itself is handed on.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

# Of transformers' settings, these reach files and the hub.
_ELSEWHERE = ("pretrained", "backbone", "path", "checkpoint", "url", "timm")


class UnknownModel(ValueError):
    """No image model of that name, or none that can be had without others from elsewhere."""


def timm_model(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """An image model of timm's without classifier, with random weights.

    Args:
        settings: of the constructors in the module that defines it, such as depth=4.

    Raises:
        UnknownModel: no such model. ValueError: a setting that is none of its own.
    """
    import timm  # here, since importing it takes seconds
    from timm.models import build_model_with_cfg, model_entrypoint

    if not timm.is_model(name):
        raise UnknownModel(f"got {name!r}, wanted an image model of timm's")
    module = sys.modules[model_entrypoint(name).__module__]
    known = {
        parameter
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, nn.Module)
        for parameter in inspect.signature(each.__init__).parameters
    }
    for function in (timm.create_model, build_model_with_cfg):
        known -= set(inspect.signature(function).parameters)
    _check(settings, known - {"self", "args", "kwargs", "num_classes", "device", "dtype"})
    made: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **settings)
    return made


def transformers_model(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """An image model of transformers', with random weights.

    Args:
        name: a model_type. settings: fields of its config.

    Raises:
        UnknownModel: no such model, or one that takes another from elsewhere. ValueError: a setting
            that is none of its own.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig  # likewise

    if name not in CONFIG_MAPPING:
        raise UnknownModel(f"got {name!r}, wanted a model_type that transformers knows")
    config_class = CONFIG_MAPPING[name]
    own = set(config_class().to_dict()) - set(PreTrainedConfig().to_dict())
    elsewhere = {field for field in own if any(word in field for word in _ELSEWHERE)}
    if elsewhere or "timm" in name or config_class not in MODEL_MAPPING:
        raise UnknownModel(
            f"got {name!r}, wanted an image model that needs no other from elsewhere"
        )
    _check(settings, own - elsewhere)
    model: Callable[[Any], nn.Module] | tuple[Any, ...] = MODEL_MAPPING[config_class]
    if isinstance(model, tuple):
        model = model[0]
    assert callable(model)
    return model(config_class(**settings))


def _check(settings: Mapping[str, Any], known: set[str]) -> None:
    """Plain values of known names."""
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"no {unknown[0]!r}, but some of {sorted(known)}")
    for name, value in settings.items():
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
            raise ValueError(f"{name!r} a number, a name or a list of them, got {value!r}")
