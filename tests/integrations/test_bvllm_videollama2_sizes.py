"""The published configurations: parameters, names of weights, and visual tokens of a video.

Sizes are those of the parts that upstream's README, scripts and code name. Built on the meta
device, so no weight has memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch

from bvllm_videollama2.configuration import PUBLISHED_TOWERS
from bvllm_videollama2.modeling import MODELS

MISTRAL: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "stc_connector",
}
QWEN2: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_projector_type": "stc_connector_v35",
}


@dataclass
class Published:
    family: str
    fields: dict[str, Any]
    frames: int
    tokens: int
    parameters: dict[str, int]
    keys: dict[str, int]


WITH_CLIP = (
    {"llm": 7_241_732_096, "vision_tower": 303_507_456, "mm_projector": 489_188_608},
    {"llm": 291, "vision_tower": 391, "mm_projector": 113},
)
WITH_SIGLIP = (
    {"llm": 7_615_616_512, "vision_tower": 428_225_600, "mm_projector": 376_889_248},
    {"llm": 339, "vision_tower": 448, "mm_projector": 113},
)
PUBLISHED = {
    "VideoLLaMA2-7B": Published("Mistral", MISTRAL, 8, 845, *WITH_CLIP),
    "VideoLLaMA2-7B-16F": Published("Mistral", MISTRAL, 16, 1521, *WITH_CLIP),
    "VideoLLaMA2.1-7B-16F": Published("Qwen2", QWEN2, 16, 1352, *WITH_SIGLIP),
}


def both(*names: str) -> list[str]:
    return [f"{name}.{what}" for name, what in product(names, ("weight", "bias"))]


def llm_keys(family: str, layers: int) -> Iterator[str]:
    yield from ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight")
    names = [f"self_attn.{x}_proj.weight" for x in "qkvo"]
    names += [f"self_attn.{x}_proj.bias" for x in "qkv"] if family == "Qwen2" else []
    names += [f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")]
    names += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    for layer, name in product(range(layers), names):
        yield f"model.layers.{layer}.{name}"


def tower_keys(clip: bool, layers: int) -> Iterator[str]:
    start = "model.vision_tower.vision_tower.vision_model."
    names = ["embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"]
    names += both("post_layernorm")
    if clip:
        names += ["embeddings.class_embedding", *both("pre_layrnorm")]
    else:
        names += ["embeddings.patch_embedding.bias", "head.probe"]
        names += ["head.attention.in_proj_weight", "head.attention.in_proj_bias"]
        names += both("head.attention.out_proj", "head.layernorm", "head.mlp.fc1", "head.mlp.fc2")
    inner = both(*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")))
    inner += both("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    names += [f"encoder.layers.{layer}.{name}" for layer, name in product(range(layers), inner)]
    yield from (start + name for name in names)


def projector_keys() -> Iterator[str]:
    start = "model.mm_projector."
    for block in (f"{s}.b{b}" for s, b in product(("s1", "s2"), range(1, 5))):
        convolutions = ["conv1", "conv2", "conv3"] + ["downsample"] * (block == "s1.b1")
        for name in convolutions:
            yield from (f"{start}{block}.{name}.conv.weight", *both(f"{start}{block}.{name}.bn"))
        yield from both(f"{start}{block}.se.fc1", f"{start}{block}.se.fc2")
    yield from both(f"{start}sampler.0", f"{start}readout.0", f"{start}readout.2")


def part(key: str) -> str:
    return next((name for name in ("vision_tower", "mm_projector") if f".{name}." in key), "llm")


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    wanted = PUBLISHED[name]
    tower = PUBLISHED_TOWERS[wanted.fields["mm_vision_tower"].split("/")[1]]
    cls: Any = MODELS[f"Videollama2{wanted.family}ForCausalLM"]
    config = cls.config_class(
        **wanted.fields,
        num_frames=wanted.frames,
        mm_hidden_size=tower["hidden_size"],
        mm_vision_select_layer=-2,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = cls(config)
    state = model.state_dict()

    sizes: Counter[str] = Counter()
    for key, value in state.items():
        sizes[part(key)] += value.numel()
    assert sizes == wanted.parameters
    assert Counter(map(part, state)) == wanted.keys
    assert set(state) == {
        *llm_keys(wanted.family, config.num_hidden_layers),
        *tower_keys(wanted.family == "Mistral", tower["num_hidden_layers"]),
        *projector_keys(),
    }

    patches = (tower["image_size"] // tower["patch_size"]) ** 2
    shape = (1, wanted.frames, patches, tower["hidden_size"])
    tokens = model.temporal_aggregator(torch.empty(shape, device="meta"))
    assert tokens.shape == (1, wanted.tokens, config.hidden_size)
