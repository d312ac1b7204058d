"""A CLIP or SigLIP with its tokenizer and image processor, from a folder that others wrote.

What the files may say is listed: two classes of models, a few of tokenizers, settings that describe
them. Weights are safetensors.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from bvllm_adapters.selectors.pixels import PixelNumbers, pixel_numbers
from bvllm_adapters.weights.checkpoint import (
    load_strictly,
    read_shapes,
    read_tensors,
    weight_files,
)
from bvllm_adapters.weights.empty import without_weights
from bvllm_adapters.weights.image_processors import read_image_processor
from bvllm_adapters.weights.json_file import CheckpointError, blamed, read_json
from bvllm_adapters.weights.sizes import check_kinds, check_settings

# model_type -> as transformers' classes of it begin. SigLIP 2 of a fixed size says "siglip".
FAMILIES = {"clip": "CLIP", "siglip": "Siglip"}
# What a folder calls its tokenizer -> transformers' classes for it, of which the first that is
# there is taken.
_TOKENIZERS = {
    "CLIPTokenizer": ("CLIPTokenizer",),
    "SiglipTokenizer": ("SiglipTokenizer",),
    "Siglip2Tokenizer": ("Siglip2Tokenizer", "GemmaTokenizer"),  # the same, but for lower case
    "GemmaTokenizer": ("GemmaTokenizer",),
}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
# Of its settings these, and those whose names end in _token, describe it; others may name files.
_TOKENIZER_SETTINGS = (
    "added_tokens_decoder additional_special_tokens extra_special_tokens padding_side "
    "do_lower_case model_max_length model_input_names clean_up_tokenization_spaces"
).split()
_POSITION_IDS = "embeddings.position_ids"  # in old files; computed today


@dataclass(frozen=True)
class ScoutFiles:
    """What a folder holds: `model` in eval mode, `tokenizer`, `image_processor`, its `numbers`."""

    family: str
    model: Any
    tokenizer: Any
    image_processor: Any
    numbers: PixelNumbers


def read_scout(folder: Path, dtype: torch.dtype) -> ScoutFiles:
    """The CLIP or SigLIP of a folder of transformers' layout.

    Raises:
        CheckpointError: files that cannot be read, or do not fit one another; weights that are no
            safetensors; another kind of model.
    """
    file = folder / "config.json"
    values = read_json(file)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(
            f"{file}: model_type: got {kind!r}, wanted one of {list(FAMILIES)}"
            + (" (no images of varying sizes)" if kind == "siglip2" else "")
        )
    family = FAMILIES[kind]
    model = _read_model(family, folder, values, dtype)
    vision = model.config.vision_config
    with blamed(folder / "preprocessor_config.json"):
        processor = read_image_processor(family, folder)
        numbers = pixel_numbers(folder / "preprocessor_config.json", processor, vision.image_size)
    return ScoutFiles(family, model, read_tokenizer(family, folder), processor, numbers)


def _read_model(family: str, folder: Path, values: Mapping[str, Any], dtype: torch.dtype) -> Any:
    config_class = getattr(transformers, f"{family}Config")
    model_class = getattr(transformers, f"{family}Model")
    file, files = folder / "config.json", weight_files(folder)
    pickled = [found.name for found in files if found.suffix != ".safetensors"]
    if pickled:
        raise CheckpointError(f"{folder}: got {pickled}, wanted weights as model*.safetensors")
    check_settings(file, values, dict(read_shapes(files)))
    check_kinds(file, values, config_class().to_dict())
    with blamed(file):
        config = config_class.from_dict(dict(values))
        config.name_or_path = str(folder)
        model = without_weights(lambda: model_class(config))
    load_strictly(
        model,
        read_tensors(files),
        rename=lambda key: None if key.endswith(_POSITION_IDS) else key,
        dtype=dtype,
        source=str(folder),
    )
    model.config.dtype = dtype
    return model.eval()


def read_tokenizer(family: str, folder: Path) -> Any:
    """The text tokenizer of a folder, by one of the classes that are known.

    transformers takes far more from a tokenizer's settings than what it is like: names of files
    among it. So it reads a copy in which these are not.
    """
    file = folder / "tokenizer_config.json"
    values = read_json(file) if file.is_file() else {}
    name = values.get("tokenizer_class") or f"{family}Tokenizer"
    names = _TOKENIZERS.get(str(name).removesuffix("Fast"), ())
    found = next(
        (getattr(transformers, each) for each in names if hasattr(transformers, each)), None
    )
    if found is None:
        raise CheckpointError(
            f"{file}: tokenizer_class: got {name!r}, wanted one of {list(_TOKENIZERS)}"
        )
    map_file = folder / "special_tokens_map.json"
    if map_file.is_file():
        values = {**read_json(map_file), **values}
    values = {
        key: value
        for key, value in values.items()
        if key in _TOKENIZER_SETTINGS or key.endswith("_token")
    }
    with tempfile.TemporaryDirectory() as copied, blamed(f"{folder}: tokenizer"):
        (Path(copied) / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
        for each in _TOKENIZER_FILES:
            if (folder / each).is_file():
                shutil.copyfile(folder / each, Path(copied) / each)
        tokenizer: Any = found.from_pretrained(copied, local_files_only=True)
        for kept in ("vocab_file", "name_or_path"):  # by which sentencepiece's are pickled
            value = getattr(tokenizer, kept, None)
            if isinstance(value, str) and value.startswith(copied):
                setattr(tokenizer, kept, str(folder / Path(value).relative_to(copied)))
        tokenizer("What?")  # settings that it was made with, but cannot work by
        return tokenizer
