"""How published Q-Former weights are named: a written mapping from their names to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Published -> ours. Behind `encoder.layer.N.` for the parts of a layer, else behind the prefix.
_LAYER = {
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention.norm",
    "crossattention.output.dense": "cross_attention.output",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate_query.dense": "query_ffn.inner",
    "output_query.dense": "query_ffn.output",
    "output_query.LayerNorm": "query_ffn.norm",
    "intermediate.dense": "text_ffn.inner",
    "output.dense": "text_ffn.output",
    "output.LayerNorm": "text_ffn.norm",
}
_EMBEDDINGS = {
    "embeddings.word_embeddings": "word_embeddings",
    "embeddings.position_embeddings": "position_embeddings",
}
# LAVIS, LLaMA-VID and the authors' B-VLLM.
LAVIS_NAMES = _LAYER | _EMBEDDINGS | {"embeddings.LayerNorm": "norm"}
# InstructBlipQFormerModel of transformers.
INSTRUCTBLIP_NAMES = _LAYER | _EMBEDDINGS | {"embeddings.layernorm": "norm"}
for _part in ("query", "key", "value"):
    LAVIS_NAMES[f"attention.self.{_part}"] = f"attention.{_part}"
    LAVIS_NAMES[f"crossattention.self.{_part}"] = f"cross_attention.{_part}"
    INSTRUCTBLIP_NAMES[f"attention.attention.{_part}"] = f"attention.{_part}"
    INSTRUCTBLIP_NAMES[f"crossattention.attention.{_part}"] = f"cross_attention.{_part}"

_ANCHOR = "embeddings.word_embeddings.weight"
_NOT_LEARNED = {"embeddings.position_ids"}


def renamed(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The one Q-Former in `state_dict`, in our names; keys outside its prefix are left alone.

    Raises:
        ValueError: for no or several Q-Formers, or a key under the prefix that `names` lacks.
    """
    prefixes = [key.removesuffix(_ANCHOR) for key in state_dict if key.endswith(_ANCHOR)]
    if len(prefixes) != 1:
        raise ValueError(
            f"state_dict: got {len(prefixes)} keys '...{_ANCHOR}', wanted one Q-Former"
        )
    prefix = prefixes[0]
    weights = {}
    for key, value in state_dict.items():
        published = key.removeprefix(prefix)
        if not key.startswith(prefix) or not published.startswith(("embeddings.", "encoder.")):
            continue
        if published in _NOT_LEARNED:
            continue
        layer = re.match(r"encoder\.layer\.(\d+)\.", published)
        module, _, kind = published[layer.end() if layer else 0 :].rpartition(".")
        if module not in names:
            raise ValueError(f"state_dict: got the key {key}, which no Q-Former of this kind has")
        place = f"layers.{layer[1]}." if layer else ""
        weights[f"{place}{names[module]}.{kind}"] = value
    return weights
