"""Sizes that a published config.json leaves unsaid, read from the shapes of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mode
from typing import Any

from bvllm_adapters.weights.hub import named_folder
from bvllm_adapters.weights.json_file import CheckpointError, blamed, read_json
from bvllm_adapters.weights.sizes import Shape, check_settings
from bvllm_llama_vid.configuration import (
    EVA_ALIASES,
    TEXT_ENCODER,
    TOWER,
    EvaSizes,
    LlavaConfig,
    QFormerSizes,
    clip_config,
    eva_sizes,
    is_eva,
    qformer_sizes,
)


def name_sizes(config: LlavaConfig, shapes: Mapping[str, Shape]) -> None:
    """Write into the config what the weights say of sizes, where it would say otherwise."""
    eva = is_eva(config)
    tower = {n.removeprefix(TOWER): s for n, s in shapes.items() if n.startswith(TOWER)}
    text = {
        n.removeprefix(TEXT_ENCODER): s for n, s in shapes.items() if n.startswith(TEXT_ENCODER)
    }
    found = agreed(tower, EVA_SIZES if eva else CLIP_SIZES)
    positions = found.pop("image_size", None)
    if positions is not None and "patch_size" in found:
        found["image_size"] = found["patch_size"] * side(positions)
    if eva and found:
        # The published file may have 40 blocks, of which the model uses 39.
        found["num_hidden_layers"] = min(_count(tower, "blocks."), EvaSizes.num_hidden_layers)
    elif found:
        found["num_hidden_layers"] = _count(tower, "vision_model.encoder.layers.")
    known = asdict(eva_sizes(config)) if eva else clip_config(config, check=False).to_dict()
    _name(config, "mm_vision_config", found, known)

    _name(config, "mm_qformer_config", text_sizes(text), asdict(qformer_sizes(config)))


def text_sizes(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """What the weights of the context attention's text encoder say of its sizes."""
    found = agreed(shapes, TEXT_SIZES)
    if found:
        layers = found["num_hidden_layers"] = _count(shapes, "encoder.layer.")
        readers = [
            i
            for i in range(layers)
            if any(name.startswith(f"encoder.layer.{i}.crossattention.") for name in shapes)
        ]
        found["cross_attention_freq"] = readers[1] if len(readers) > 1 else layers
    return found


def live_text_sizes(model: Any) -> QFormerSizes:
    """Sizes of the text encoder in a model, our port's or upstream's, whose config.json need not
    tell them; as `qformer_sizes` has them where the model has none."""
    known = qformer_sizes(model.config)
    encoder = getattr(model.get_model(), "vlm_att_encoder", None)
    if encoder is None:
        return known
    shapes = {
        name.replace("base_layer.", "").removeprefix("bert."): tuple(weight.shape)
        for name, weight in encoder.named_parameters()
    }
    said = getattr(encoder, "config", None)  # the number of heads shows in no weight
    heads = getattr(said, "num_attention_heads", known.num_attention_heads)
    return replace(known, **text_sizes(shapes), num_attention_heads=heads)


# Size -> which axis of which weights has it. Several say the same: where they disagree, most are
# right, and the one that is not is named when the weights are loaded. Of images, positions.
Rules = dict[str, list[tuple[str, int]]]
EVA_SIZES: Rules = {
    "image_size": [(r"pos_embed", 1)],
    "patch_size": [(r"patch_embed\.proj\.weight", 2)],
    "hidden_size": [(r"blocks\.\d+\.norm[12]\.weight", 0), (r"cls_token", 2)],
    "intermediate_size": [(r"blocks\.\d+\.mlp\.fc1\.bias", 0)],
}
CLIP_SIZES: Rules = {
    "image_size": [(r"vision_model\.embeddings\.position_embedding\.weight", 0)],
    "patch_size": [(r"vision_model\.embeddings\.patch_embedding\.weight", 2)],
    "hidden_size": [(r"vision_model\..*layer_?norm\d?\.weight", 0)],
    "intermediate_size": [(r"vision_model\.encoder\.layers\.\d+\.mlp\.fc1\.bias", 0)],
}
TEXT_SIZES: Rules = {
    "hidden_size": [(r"embeddings\..*embeddings\.weight", 1), (r".*\.LayerNorm\.weight", 0)],
    "intermediate_size": [(r"encoder\.layer\.\d+\.intermediate\.dense\.bias", 0)],
    "encoder_width": [(r"encoder\.layer\.\d+\.crossattention\.self\.(key|value)\.weight", 1)],
}


def agreed(shapes: Mapping[str, Shape], rules: Rules) -> dict[str, int]:
    """The sizes that most of the weights say; without those that none does."""
    sizes = {}
    for size, places in rules.items():
        said = [
            shape[axis]
            for pattern, axis in places
            for name, shape in shapes.items()
            if re.fullmatch(pattern, name) and len(shape) > axis
        ]
        if said:
            sizes[size] = mode(said)
    return sizes


def _name(
    config: LlavaConfig, key: str, found: Mapping[str, int], known: Mapping[str, Any]
) -> None:
    written = getattr(config, key, None) or {}
    given = {EVA_ALIASES.get(name, name): size for name, size in written.items()}
    new = {name: size for name, size in found.items() if size != known[name]}
    if new or given:
        setattr(config, key, new | given)
    width = (new | given).get("hidden_size")
    if width is not None and "num_attention_heads" not in given:
        raise ValueError(
            f"{key}: got a width of {width} and no num_attention_heads, which no weight shows; "
            "wanted it said"
        )


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    numbers = [
        name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)
    ]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def side(positions: int) -> int:
    """Patches along an image's edge, of 1 + n * n positions."""
    return math.isqrt(positions - 1)


def name_clip(config: LlavaConfig, folder: Path) -> None:
    """Write into the config what a CLIP's own config.json says and its weights do not."""
    try:
        place = named_folder(folder / "config.json", "mm_vision_tower", config.mm_vision_tower)
    except CheckpointError:  # not cached, or no hub id: then it is the published CLIP of its width
        return
    file = place / "config.json"
    if not file.is_file():
        return
    written = read_json(file)
    check_settings(file, written)
    with blamed(file):
        written = written.get("vision_config", written)
        said = ("num_attention_heads", "hidden_act", "layer_norm_eps")
        config.mm_vision_config = {
            **{key: written[key] for key in said if key in written},
            **(getattr(config, "mm_vision_config", None) or {}),
        }
