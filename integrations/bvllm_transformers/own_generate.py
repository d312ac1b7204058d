"""Models whose generate() is their own: it puts features into embeddings and passes these on to the
language model's."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationMixin

from bvllm_transformers.families import family_of
from bvllm_transformers.towers import flat


def generates_itself(model: Any) -> bool:
    """Whether a model's generate() takes no features, but hands its language model embeddings."""
    owner = next(
        cls
        for cls in type(model).__mro__
        if "generate" in vars(cls) and not cls.__module__.startswith("bvllm_")
    )
    return owner is not GenerationMixin and hasattr(model, "language_model")


def as_embeddings(model: Any, made: dict[str, Any]) -> dict[str, Any]:
    """The arguments of forward() -> those of its language model's generate().

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
    return {**given, "inputs_embeds": embeds}
