"""Models whose generate() is their own: it puts features into embeddings and passes these on to the
language model's."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from bvllm_transformers.families import family_of
from bvllm_transformers.towers import flat


def is_own(generate: Any) -> bool:
    """Whether a class's generate() is not that of all models, which takes features."""
    return generate is not GenerationMixin.generate


def as_embeddings(model: Any, made: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of forward() -> the language model, and those of its generate().

    Args:
        made: with input_ids and `mm_encoder_outputs`.
    """
    family = family_of(model)
    ids: Tensor = made["input_ids"]
    embeds: Tensor = model.get_input_embeddings()(ids)
    found = made["mm_encoder_outputs"].get(family.key)
    if found is not None:
        holes = (ids == getattr(model.config, family.token))[..., None]
        embeds = embeds.masked_scatter(holes, flat(found.pooler_output).to(embeds))
    given = {name: value for name, value in made.items() if value is not None}
    del given["mm_encoder_outputs"]
    return model.language_model, {**given, "inputs_embeds": embeds}
