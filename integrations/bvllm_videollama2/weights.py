"""Published checkpoints of VideoLLaMA2: whole, LoRA, or a stage-1 projector alone.

Weights go one by one from the file into a model without any, so two copies are never held.
Every key is accounted for: known leftovers are passed over, anything else that does not fit is
an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from bvllm_adapters.hosts.language_model import read_generation_config
from bvllm_adapters.weights.checkpoint import (
    Named,
    has_weights,
    load_strictly,
    read_shapes,
    read_tensors,
    weight_files,
)
from bvllm_adapters.weights.empty import without_weights
from bvllm_adapters.weights.hub import local_folder, named_folder
from bvllm_adapters.weights.json_file import CheckpointError, blamed, read_json
from bvllm_adapters.weights.merged_lora import merge_lora
from bvllm_adapters.weights.sizes import Shapes, check_kinds, check_present, check_settings
from bvllm_videollama2.configuration import tower_folder
from bvllm_videollama2.experts import together
from bvllm_videollama2.modeling import MODELS, Videollama2MetaForCausalLM
from bvllm_videollama2.published import QFORMER

log = logging.getLogger("bvllm_adapters")

# Upstream's own settings, of which transformers knows no default.
_KINDS = {
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "num_frames": 8,
    "mm_vision_config": CLIPVisionConfig().to_dict(),
    "mm_qformer_config": dict.fromkeys(QFORMER, 1),
}
TOWER = "model.vision_tower.vision_tower."
PROJECTOR_FILES = ("mm_projector.safetensors", "mm_projector.bin")
NON_LORA_FILES = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")

# What old files hold that is computed today, and the text half of a whole CLIP or SigLIP.
_LEFTOVER = re.compile(
    r".*\.rotary_emb\.inv_freq|.*\.embeddings\.position_ids"
    rf"|{re.escape(TOWER)}(text_model\..*|(text|visual)_projection\.weight|logit_(scale|bias))"
)


def load(
    folder: str | Path, *, dtype: torch.dtype, base: str | Path | None = None
) -> Videollama2MetaForCausalLM:
    """The model of a published checkpoint folder, complete or an error.

    Args:
        folder: a whole checkpoint, a LoRA (adapter_config.json), or a projector (mm_projector.bin).
        dtype: of all weights.
        base: folder or hub id of what a LoRA or a projector was trained on; None: what its config
            says.

    Raises:
        ValueError: naming the file and the keys that are missing, unexpected or misshapen.
    """
    folder = Path(folder)
    lora = _first(folder, ("adapter_config.json",))
    projector = None if lora else _first(folder, PROJECTOR_FILES)
    if projector and has_weights(folder):
        projector = None  # a copy of what the whole checkpoint holds
    if lora or projector:
        over = projector or _first(folder, NON_LORA_FILES)
        replaced = {} if over is None else dict(_plain(read_tensors([over])))
        files = weight_files(local_folder(_base(folder, base), "config.json"))
        tensors = chain(
            replaced.items(), ((k, v) for k, v in read_tensors(files) if k not in replaced)
        )
    elif base is not None:
        raise ValueError(f"base: got {base}, wanted None, as {folder} holds a whole model")
    else:
        files = weight_files(folder)
        tensors = chain(read_tensors(files))
    model = empty_model(folder, dict(read_shapes(files)))
    fill(model, tensors, dtype=dtype, source=str(folder))
    if lora:
        merge_lora(model, folder)
    model.generation_config = read_generation_config(
        folder / "generation_config.json", model.generation_config
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def empty_model(folder: Path, shapes: Shapes) -> Videollama2MetaForCausalLM:
    """The model that config.json describes, its weights on the meta device.

    Args:
        shapes: of its weights, or of most of them, against which its sizes are held.
    """
    file = folder / "config.json"
    fields = read_json(file)
    check_settings(file, fields, shapes)
    with blamed(file):
        names = fields.get("architectures") or ["none"]
        if names[0] not in MODELS:
            raise CheckpointError(
                f"architectures: got {names[0]} in {file}, wanted one of {list(MODELS)}"
            )
        cls = MODELS[names[0]]
        check_kinds(file, fields, cls.config_class().to_dict() | _KINDS)  # type: ignore[misc]
        check_present(file, fields, "num_attention_heads rms_norm_eps")
        fields.pop("model_type", None)  # "videollama2" is an alias of "videollama2_mistral"
        config = cls.config_class.from_dict(fields)  # type: ignore[union-attr]
        config.name_or_path = str(folder)
        return without_weights(lambda: cls(config))


def fill(
    model: Videollama2MetaForCausalLM, tensors: Named, *, dtype: torch.dtype, source: str
) -> None:
    """Put published weights into an empty model; the tower's come from its folder if need be."""
    tied = bool(model.config.tie_word_embeddings)
    report = load_strictly(
        model,
        together(_with_tower(model, tensors)),
        rename=lambda key: None if _LEFTOVER.fullmatch(key) else key,
        dtype=dtype,
        source=source,
        optional=lambda key: tied and key == "lm_head.weight",
    )
    if tied:
        model.tie_weights()
    model.config.dtype = dtype
    log.info("%s: %s", source, report)


def _with_tower(model: Videollama2MetaForCausalLM, tensors: Named) -> Iterator[tuple[str, Tensor]]:
    inside = model.get_vision_tower() is None
    for key, tensor in tensors:
        inside = inside or key.startswith(TOWER)
        yield key, tensor
    folder = None if inside else tower_folder(model.config)
    if folder is not None:
        for key, tensor in read_tensors(weight_files(folder)):
            yield TOWER + key, tensor


def _plain(tensors: Named) -> Iterator[tuple[str, Tensor]]:
    """Names without what a PeftModel puts before them."""
    for key, tensor in tensors:
        key = key.removeprefix("base_model.")
        yield key.removeprefix("model.") if key.startswith("model.model.") else key, tensor


def _base(folder: Path, base: str | Path | None) -> str | Path:
    if base is not None:
        return base
    for file, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("config.json", "_name_or_path"),
    ):
        if (folder / file).is_file():
            name = read_json(folder / file).get(key)
            if name:
                return named_folder(folder / file, f"base: got None, {key}", name)
    raise ValueError(f"base: got None, and {folder} does not say what it was trained on")


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
