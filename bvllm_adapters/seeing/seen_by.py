"""What made the features of a video: the model's settings, its weights, the processor's pixels.

By these, features that were kept or saved are known to be those that the model would make now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import nn

from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.seeing.fingerprint import weights_fingerprint, weights_stamp
from bvllm_adapters.selectors.choosing import sees
from bvllm_adapters.selectors.saved import scout_of

PIXELS = "pixels of the processor"
PROBED = 64  # pixels of a picture that tell one processor from another
ROUNDING = 1e-4  # of pixels, by which machines may differ


def settings_of(host: Any, model: nn.Module) -> dict[str, Any]:
    """What decides, beside weights, which features a model makes of pixels; as JSON."""
    config, tower = tokenizer_of(model).config, host.tower(model)
    selector: Any = tokenizer_of(model).frame_selector
    # Of a host that lays pictures out by it: how large they are, and what is read of them.
    budget = [config.max_tokens, config.num_frames, config.tokens_per_frame]
    stages = [config.sampler, config.projection]
    return {
        "selector": [config.selector, dict(config.selector_settings)]
        if sees(selector)
        else None,  # each kind makes its own
        **({"budget": budget, "stages": stages} if hasattr(host, "layout") else {}),
        "dtype": str(next(tower.parameters()).dtype),
        "layer of the tower": getattr(tower, "select_layer", None),  # as the LLaVA family says
        "frame_feature": config.frame_feature,
        # A scout that is the tower itself has no weights, only a size.
        "scout": config.scout and json.loads(json.dumps(asdict(config.scout))),
    }


def pixels_made(host: Any, processor: Any) -> dict[str, Any]:
    """What a processor makes of one picture, as a video's frame and as an image; 8 to 26 ms.

    Whatever its settings are called and wherever they lie: one that matters shows in pixels.
    """
    height, width = 48, 80  # not square, so that it shows what is cropped or padded
    picture = (np.arange(height * width * 3) * 7919 % 251).astype(np.uint8)
    frames = picture.reshape(1, height, width, 3)
    seen = [host.pixels(processor, frames, is_image=is_image) for is_image in (False, True)]
    made = [getattr(pixels, "tensor", pixels) for pixels in seen]  # a host's own kind has one
    probed = [pixels.flatten()[np.arange(PROBED) * 7919 % pixels.numel()] for pixels in made]
    probe = {
        "shape": [list(pixels.shape) for pixels in made],
        "mean": [round(float(pixels.float().mean()), 4) for pixels in made],
        "values": [round(value, 5) for values in probed for value in values.tolist()],
    }
    return {PIXELS: probe}


def identity(host: Any, model: nn.Module, processor: Any) -> dict[str, Any]:
    """What features must have been made by for this model to read them; as JSON."""
    return {
        "host": type(model).__name__,
        **settings_of(host, model),
        **pixels_made(host, processor),
        **{
            name: None if part is None else weights_fingerprint(part)
            for name, part in _weighty(host, model)
        },
    }


def stamps_of(host: Any, model: nn.Module) -> dict[str, Any]:
    """What tells, quickly and in this process alone, that weights have been written to."""
    return {name: weights_stamp(part) for name, part in _weighty(host, model)}


def _weighty(host: Any, model: nn.Module) -> list[tuple[str, nn.Module | None]]:
    return [
        ("weights of the tower", host.tower(model)),
        ("weights of the scout", tokenizer_of(model).scout),
        ("weights of the selector's scout", scout_of(tokenizer_of(model).frame_selector)),
    ]


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Name, what it was and what it is, of each setting that is not what it was `before`."""
    for name, value in now.items():
        was = before.get(name)
        if name == PIXELS:
            if not _alike(was, value):
                yield name, _short(was), _short(value)
        elif was != value:
            yield name, was, value


def _alike(was: Any, now: Mapping[str, Any]) -> bool:
    try:
        return was["shape"] == now["shape"] and np.allclose(
            was["values"], now["values"], rtol=0, atol=ROUNDING
        )
    except (TypeError, KeyError, ValueError):  # of a damaged file
        return False


def _short(pixels: Any) -> str:
    if not isinstance(pixels, Mapping):
        return repr(pixels)
    return f"{pixels.get('shape')} of mean {pixels.get('mean')}"
