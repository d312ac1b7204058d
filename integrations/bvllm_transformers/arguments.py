"""What a prompt with pixels may come with, and what it is given where it lacks it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.hosts.language_model import CACHE_NAMES as CACHES
from bvllm_transformers.families import Family

Inputs = Mapping[str, Any]

VIDEO = 2  # of mm_token_type_ids
IMAGES_APART = "pixel_values_images"  # Video-LLaVA's
_ONLY_IDS = {
    "inputs_embeds": "input_ids alone",
    "mm_encoder_outputs": "pixels alone",
    "position_ids": (
        "none: those of the tokens that are left are found here, and packed prompts are not served"
    ),
    "shift_labels": "labels, as the word behind an id may go",
    "cu_seq_lens_q": "prompts that are not packed",
}


def check_seam(model: Any) -> None:
    """HostError where the transformers installed gives its models no way in for visual tokens."""
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        raise HostError(
            f"a {type(model).__name__} needs transformers >= 5.18 to be put under a budget, this "
            f"is {transformers.__version__}; bvllm.select_frames chooses frames with any version"
        )


def check_inputs(inputs: Inputs) -> None:
    """ValueError for what a prompt whose ids are compacted cannot come with."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"input_ids: got {got} beside pixels, wanted the prompts' ids (B, L)")
    if inputs.get(IMAGES_APART) is not None:
        raise ValueError(
            f"{IMAGES_APART}: got images, which are not put under a budget yet, wanted videos "
            "alone; bvllm.unwrap the model for them"
        )
    for name, wanted in _ONLY_IDS.items():
        value = inputs.get(name)
        if value is not None and not (isinstance(value, dict) and not value):
            raise ValueError(f"{name}: got the caller's own beside pixels, wanted {wanted}")
    for name in CACHES:
        held = check_cache(name, inputs.get(name))
        if held:
            raise ValueError(
                f"{name}: got {held} ids of an earlier call beside pixels, wanted the whole "
                "conversation in one call"
            )
    for name in ("attention_mask", "labels"):
        value = inputs.get(name)
        if value is not None and (not isinstance(value, Tensor) or value.shape != ids.shape):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: got {got}, wanted {tuple(ids.shape)} as input_ids")


def check_cache(name: str, cache: Any) -> int:
    """How many ids a cache holds; ValueError for what is none."""
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise ValueError(f"{name}: got {type(cache).__name__}, wanted a Cache of transformers")
    return int(cache.get_seq_length())


def mask_of_padding(model: Any, inputs: Inputs) -> dict[str, Tensor]:
    """The attention_mask that generate() finds by itself for prompts that come without: padding
    is not looked at, where it can be told from the end of an answer."""
    ids: Tensor = inputs["input_ids"]

    def setting(name: str) -> Any:
        own = inputs.get(name)
        given = getattr(inputs.get("generation_config"), name, None)
        return own if own is not None else given if given is not None else _own(model, name)

    pad, ends = setting("pad_token_id"), setting("eos_token_id")
    ends = ends if isinstance(ends, list | tuple) else [ends]
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return {}
    return {"attention_mask": (ids != pad).long()}


def _own(model: Any, name: str) -> Any:
    return getattr(model.generation_config, name, None)


def with_types(model: Any, family: Family, inputs: Inputs) -> Inputs:
    """With mm_token_type_ids where positions of three axes need them, for inputs of older code.

    Without them a model's positions are wrong, in generate() and in some models in forward(), and
    nothing is raised.

    Raises:
        ValueError: where the ids do not tell videos from images.
    """
    rope = getattr(model.base_model, "get_rope_index", None)
    if rope is None or "mm_token_type_ids" not in inspect.signature(rope).parameters:
        return inputs
    if inputs.get("mm_token_type_ids") is not None:
        return inputs
    if family.key == "image":
        raise ValueError(
            "mm_token_type_ids: got None, wanted those that the processor gives: this model's "
            "frames and images have one placeholder"
        )
    ids = inputs["input_ids"]
    image = getattr(model.config, "image_token_id", -1)
    video = getattr(model.config, family.token)
    types = torch.zeros_like(ids).masked_fill(ids == image, 1).masked_fill(ids == video, VIDEO)
    return {**inputs, "mm_token_type_ids": types}


def pad_of(model: Any) -> int:
    """What padding is filled with; nobody reads it."""
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        found = getattr(config, "pad_token_id", None)
        if isinstance(found, int) and found >= 0:
            return found
    return 0
