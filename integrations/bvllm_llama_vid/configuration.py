"""What a published LLaMA-VID is made of: its config.json, and the sizes that it leaves unsaid.

A published config.json tells the language model's sizes, but of the vision tower only where its
weights lay, and of the Q-Former nothing: upstream always builds EVA-CLIP-g or the named CLIP, and
bert-base. Two optional keys, `mm_vision_config` and `mm_qformer_config`, say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import CLIPVisionConfig, LlamaConfig

from bvllm_adapters.hosts.language_model import CACHE_NAMES
from bvllm_adapters.weights.hub import inside

Sizes = TypeVar("Sizes", "EvaSizes", "QFormerSizes")

IMAGE_TOKEN_ID = -200
TOWER = "model.vision_tower.vision_tower."  # where published weights lie
TEXT_ENCODER = "model.vlm_att_encoder.bert."
EVA_WIDTH = 1408  # what a pretrained Q-Former (InstructBLIP's) reads


class LlavaConfig(LlamaConfig):
    """Upstream's config: LlamaConfig and `mm_*`, `bert_type`, `num_query`, `compress_type`.

    Its model_type is "llava", which transformers gives to another model; therefore this class is
    registered nowhere, and a checkpoint is recognised by its `architectures`.
    """

    model_type = "llava"
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012


@dataclass(frozen=True)
class EvaSizes:
    """EVA-CLIP's ViT up to its last block's output; by default EVA-CLIP-g as LAVIS trims it."""

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1408
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    intermediate_size: int = 6144


@dataclass(frozen=True)
class QFormerSizes:
    """The context attention's text encoder; by default bert-base with "[DEC]" in its vocabulary."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    cross_attention_freq: int = 2
    encoder_width: int = EVA_WIDTH
    vocab_size: int = 30523
    max_position_embeddings: int = 512


# Upstream's constructor calls the sizes of its ViT so.
EVA_ALIASES = {
    "img_size": "image_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}


def is_eva(config: Any) -> bool:
    """Which tower: upstream reads it from the name of the weights, and so must we.

    Raises:
        ValueError: for a name that says neither.
    """
    name = str(getattr(config, "mm_vision_tower", "")).lower()
    if "openai" in name or "laion" in name:
        return False
    if "lavis" in name or "eva" in name:
        return True
    raise ValueError(
        f"mm_vision_tower: got {name!r}, wanted a name with 'openai' or 'laion' (CLIP), "
        "or 'lavis' or 'eva' (EVA-CLIP)"
    )


def eva_sizes(config: Any) -> EvaSizes:
    given: dict[str, Any] = dict(getattr(config, "mm_vision_config", None) or {})
    ratio = given.pop("mlp_ratio", None)
    sizes = _sizes(EvaSizes(), {EVA_ALIASES.get(key, key): given[key] for key in given})
    if ratio is None:
        return sizes
    return replace(sizes, intermediate_size=int(sizes.hidden_size * ratio))


def clip_config(config: Any, *, check: bool = True) -> CLIPVisionConfig:
    """CLIP-L/14, at 336 pixels if the name says so, as far as `mm_vision_config` says no other."""
    published = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 336 if "336" in str(config.mm_vision_tower) else 224,
        "projection_dim": 768,
    }
    given = {**published, **(getattr(config, "mm_vision_config", None) or {})}
    given.pop("model_type", None)
    if check and given["hidden_size"] % given["num_attention_heads"]:
        raise ValueError(
            f"mm_vision_config: got {given['num_attention_heads']} heads for a width of "
            f"{given['hidden_size']}, wanted num_attention_heads that divide it"
        )
    return CLIPVisionConfig(**given)


def qformer_sizes(config: Any) -> QFormerSizes:
    pretrained = "pretrain" in config.bert_type
    published = QFormerSizes(encoder_width=EVA_WIDTH if pretrained else config.mm_hidden_size)
    return _sizes(published, getattr(config, "mm_qformer_config", None) or {})


def question_vocabulary(config: Any) -> Path | None:
    """The checkpoint's own WordPiece vocabulary; None: the bundled bert-base-uncased."""
    name = getattr(config, "mm_qformer_vocab", None)
    file = Path(str(getattr(config, "_name_or_path", "") or "")) / "config.json"
    return inside(file, "mm_qformer_vocab", name) if name else None


def grid_of(config: Any) -> int | None:
    """compress_type: None keeps all patches, "mean" is a grid of 1, "grid:N" one of N by N."""
    kind = getattr(config, "compress_type", None)
    if kind is None:
        return None
    if kind == "mean":
        return 1
    size = kind.removeprefix("grid:")
    if kind.startswith("grid:") and size.isdigit() and int(size) > 1:
        return int(size)
    raise ValueError(f"compress_type: got {kind!r}, wanted None, 'mean' or 'grid:N' with N > 1")


def _sizes(published: Sizes, given: Mapping[str, Any]) -> Sizes:
    """`published` with the fields that `given` has; keys that are no sizes are left alone."""
    known = {field.name for field in fields(published)}
    return replace(published, **{key: int(value) for key, value in given.items() if key in known})
