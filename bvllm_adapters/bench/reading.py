"""What a language model takes to read a prompt and to go on from it, however long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bvllm_adapters.bench.shapes import counted, empty, shape_of
from bvllm_adapters.hosts.language_model import cache_name, cache_of


@dataclass(frozen=True)
class Reading:
    """What a language model takes to read tokens; counted on three short prompts.

    Linear layers cost the same for each token, attention for each pair of a token and one that is
    not after it, and the last token's logits come on top, so this holds for every length.

    Args:
        token, pair, logits: FLOPs of each. cache_bytes: of each token's keys and values.
    """

    token: int
    pair: int
    logits: int
    cache_bytes: int

    @classmethod
    def of(cls, ghost: Any) -> Reading:
        weight = ghost.get_input_embeddings().weight
        model = getattr(ghost, "language_model", ghost)
        # generate() asks for the last logits alone where the model can be told so.
        last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

        def read(tokens: int, cache: Any) -> tuple[Any, int]:
            embeds = empty(1, tokens, weight.shape[1], dtype=weight.dtype)
            # Given, since Qwen2-VL would make them from ids.
            positions = empty(1, tokens, dtype=torch.int64)
            output, flops = shape_of(
                lambda: model(
                    inputs_embeds=embeds, position_ids=positions, use_cache=True,
                    **{cache_name(model.forward): cache}, **last,
                )
            )  # fmt: skip
            return cache_of(output), flops

        cache, first_two = read(2, None)  # 2 tokens, 4 pairs: those that are masked are counted
        cache, third = read(1, cache)  # 1 token, 3 pairs
        cache, fourth = read(1, cache)  # 1 token, 4 pairs
        pair = counted("attention", fourth - third)
        token = counted("linear layers", first_two - fourth)
        return cls(
            token=token,
            pair=pair,
            logits=fourth - token - 4 * pair,
            cache_bytes=nbytes(cache) // 4,
        )

    def flops(self, first: int, last: int) -> int:
        """Of reading the `first` to the `last` token in one go, those before being cached."""
        pairs = (last * (last + 1) - (first - 1) * first) // 2
        return (last - first + 1) * self.token + pairs * self.pair + self.logits


def nbytes(cache: Any) -> int:
    """Of a transformers Cache."""
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
