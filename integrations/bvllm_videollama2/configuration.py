"""Configs under upstream's model_types, and where a model's vision tower is described.

`mm_vision_tower` names the tower: a hub id, an absolute path, or one relative to the checkpoint's
folder. Its sizes come from the folder's config.json or are known by name; the config.json key
`mm_vision_config` overrides them field by field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from bvllm_adapters.hosts.language_model import CACHE_NAMES
from bvllm_adapters.weights.checkpoint import has_weights, read_shapes, weight_files
from bvllm_adapters.weights.json_file import blamed, read_json
from bvllm_adapters.weights.sizes import check_kinds, check_settings

TowerConfig = CLIPVisionConfig | SiglipVisionConfig


class Videollama2MistralConfig(MistralConfig):
    model_type = "videollama2_mistral"
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012


class Videollama2Qwen2Config(Qwen2Config):
    model_type = "videollama2_qwen2"
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012


class Videollama2MixtralConfig(MixtralConfig):
    model_type = "videollama2_mixtral"
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012


class Videollama2LlamaConfig(LlamaConfig):
    model_type = "videollama2_llama"
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012


_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
PUBLISHED_TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14": _LARGE | {"image_size": 224},
    "clip-vit-large-patch14-336": _LARGE | {"image_size": 336},
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 384,
    },
}


def tower_config(config: Any) -> TowerConfig:
    """Sizes of the vision tower that a model's config names.

    Raises:
        ValueError: for a tower whose sizes nothing tells, or that is neither CLIP nor SigLIP.
    """
    name = str(config.mm_vision_tower)
    found = _found_fields(name, tower_folder(config))
    fields: dict[str, Any] = found | (getattr(config, "mm_vision_config", None) or {})
    if not fields:
        raise ValueError(
            f"mm_vision_tower: got {name}, which is no folder here nor in the hub's cache, wanted "
            f"one with a config.json, one of {sorted(PUBLISHED_TOWERS)}, or mm_vision_config"
        )
    # Upstream tells the two apart by the name alone.
    by_name = "clip_vision_model" if "clip" in Path(name).name.lower() else "siglip_vision_model"
    kind = fields.pop("model_type", by_name)
    for known in (CLIPVisionConfig, SiglipVisionConfig):
        if kind == known.model_type:
            return known(**fields)
    raise ValueError(
        f"mm_vision_tower: got a {kind} in {name}, wanted a clip_vision_model or "
        "siglip_vision_model"
    )


def _found_fields(name: str, folder: Path | None) -> dict[str, Any]:
    if folder is None or not (folder / "config.json").is_file():
        return PUBLISHED_TOWERS.get(Path(name).name, {})
    file = folder / "config.json"
    fields = read_json(file)
    shapes = dict(read_shapes(weight_files(folder))) if has_weights(folder) else None
    check_settings(file, fields, shapes)
    check_kinds(file, fields, CLIPVisionConfig().to_dict())
    if "vision_config" not in fields:
        return fields
    # A whole CLIP or SigLIP: its vision half, of which only what differs from the default is said.
    with blamed(file):
        half: dict[str, Any] = fields["vision_config"]
        return {"model_type": f"{fields['model_type']}_vision_model"} | half


def tower_folder(config: Any) -> Path | None:
    """The tower's folder on this disk, or None; nothing is downloaded."""
    name = str(config.mm_vision_tower)
    beside = Path(str(config.name_or_path or ".")) / name  # an absolute name stays what it is
    if beside.is_dir():
        return beside
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no hub id at all
        return None
