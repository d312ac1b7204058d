"""What differs between transformers' versions about the language models that a host is made of.

transformers 5.24 renamed the cache of keys and values: an argument and a field of outputs that
were `past_key_values` are `cache` since. The former name warns there, and is to be gone in 5.40.
Models written for either name are about, and one that knows the other name loses the cache
silently where it takes any keyword. All of this package asks here.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.weights.json_file import CheckpointError, blamed, read_json
from bvllm_adapters.weights.sizes import check_kinds

# Kinds of settings that transformers has no defaults of.
_GENERATION = {
    **dict.fromkeys("temperature top_p repetition_penalty length_penalty".split(), 1.0),
    **dict.fromkeys("top_k max_length max_new_tokens min_length num_beams".split(), 1),
    **dict.fromkeys("do_sample use_cache output_scores output_logits".split(), False),
    **dict.fromkeys("output_attentions output_hidden_states".split(), False),
    "return_dict_in_generate": False,
}
TESTED = (5, 24)  # the newest transformers that the tests have passed with, as in constraints.txt
CACHE_NAMES = ("cache", "past_key_values")

log = logging.getLogger("bvllm_adapters")


@functools.cache  # to say it once
def tell_if_newer_than_tested() -> None:
    """A line in the log where transformers is newer than any that was tested."""
    installed = version("transformers")
    number = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    if number > TESTED:
        log.warning(
            "transformers %s is newer than %s, the newest that this was tested with: answers may "
            "differ; see the README for versions that were",
            installed, ".".join(map(str, TESTED)),
        )  # fmt: skip


def cache_name(function: Callable[..., Any]) -> str:
    """What a forward, or another function of a language model, calls the cache.

    Where its signature says neither, as a wrapper's that hands on all it gets: transformers' own.
    """
    named = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in named), cache_field())


def cache_field() -> str:
    """What the outputs of the installed transformers call it."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return next(name for name in CACHE_NAMES if name in CausalLMOutputWithPast.__dataclass_fields__)


def cache_of(output: Any) -> Any:
    """The cache in a language model's output; None if it holds none."""
    return getattr(output, cache_field(), None)


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that came, under either name.

    Raises:
        ValueError: two caches came.
    """
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("cache: got it beside past_key_values, wanted one of them")
    return past_key_values if cache is None else cache


def read_generation_config(file: Path, default: Any = None) -> Any:
    """generation_config.json of a checkpoint.

    Settings of sampling that it does not switch on are left out, since such a file, as published
    ones are, could not be saved again.

    Args:
        default: where there is no such file.

    Raises:
        CheckpointError: for a file that cannot be read, or values of the wrong kind.
    """
    from transformers import GenerationConfig

    if not file.is_file():
        return default
    values = read_json(file)
    check_kinds(file, values, GenerationConfig().to_dict() | _GENERATION)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(name)
        ids = value if isinstance(value, list) else [value]
        right = [each is None or (type(each) is int and 0 <= each < 2**31) for each in ids]
        if not right or not all(right):
            raise CheckpointError(f"{file}: {name}: got {value!r}, wanted ids of words")
    if not values.get("do_sample"):
        values = {k: v for k, v in values.items() if k not in ("temperature", "top_p", "top_k")}
    with blamed(file):
        return GenerationConfig.from_dict(values)


def language_class(model: Any) -> Any:
    """The ...ForCausalLM of transformers that a model derives from.

    Its methods are called where those of a class between belong to another transformers.

    Raises:
        ValueError: it derives from none.
    """
    for cls in type(model).__mro__:
        if cls.__module__.startswith("transformers.models."):
            return cls
    raise ValueError(
        f"model: got a {type(model).__name__}, wanted one that derives from a class of transformers"
    )


class StepsOfTransformers:
    """Mixin of a model whose steps of generation are made ready by transformers' own method, past
    one of a class between that knows the cache by another name."""

    def prepare_inputs_for_generation(
        self: Any, input_ids: Tensor, *, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """transformers' own. It is asked whether it takes embeddings, so they have a name here."""
        return language_class(self).prepare_inputs_for_generation(
            self, input_ids, inputs_embeds=inputs_embeds, **kwargs
        )


def bare_language_model(model: Any) -> Any:
    """The ...ForCausalLM of transformers in a model that derives from it, its modules shared.

    It takes embeddings and asks for no images, whatever the methods of the model itself do.
    """
    cls = language_class(model)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 0  # a shell: its layers will be the model's own
    with torch.device("meta"):
        shell: Any = cls(config)
    shell.model, shell.lm_head = model.get_model(), model.get_output_embeddings()
    shell.config, shell.generation_config = model.config, model.generation_config
    shell.training = model.training  # its own flag alone; its modules keep theirs
    return shell
