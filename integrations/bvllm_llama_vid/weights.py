"""Loading published LLaMA-VID checkpoints: every key is accounted for.

The sources of a model are chained, so that each tensor is read once and goes straight into its
place in a model that holds none before.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bvllm_adapters.hosts.language_model import read_generation_config
from bvllm_adapters.weights.checkpoint import CheckpointError, Named, load_strictly
from bvllm_adapters.weights.empty import without_weights
from bvllm_adapters.weights.eva import eva_name, resized_positions, without_key_bias
from bvllm_adapters.weights.json_file import blamed
from bvllm_adapters.weights.merged_lora import merge_lora
from bvllm_adapters.weights.sizes import Shape, check_settings
from bvllm_llama_vid.configuration import (
    TEXT_ENCODER,
    TOWER,
    LlavaConfig,
    eva_sizes,
    is_eva,
)
from bvllm_llama_vid.modeling import LlavaLlamaAttForCausalLM
from bvllm_llama_vid.preprocessing import read_config
from bvllm_llama_vid.prompt_tokenizer import PromptTokenizer
from bvllm_llama_vid.sizes import name_clip, name_sizes
from bvllm_llama_vid.sources import LORA_CONFIG, find_base, find_sources, tower_source

POSITION_IDS = f"{TEXT_ENCODER}embeddings.position_ids"

# What published files hold and the model computes.
_COMPUTED = re.compile(r".*(rotary_emb\.inv_freq|vision_model\.embeddings\.position_ids)")

log = logging.getLogger("bvllm_adapters")


def load(
    folder: str | Path, *, dtype: torch.dtype, base: str | Path | None = None
) -> LlavaLlamaAttForCausalLM:
    """The model of a published folder, in eval mode; the package's README lists the layouts.

    Args:
        dtype: of all weights; tables that are computed stay in float32.
        base: where the rest of the model is, if the folder holds a projector or LoRA only.

    Raises:
        CheckpointError: files that cannot be read; keys missing, unexpected or misshapen.
    """
    folder = Path(folder)
    config = read_config(folder)
    base = find_base(folder, base)
    sources = find_sources(folder, base)
    shapes: dict[str, Shape] = {}
    for source in sources:
        shapes |= source.shapes()
    file = folder / "config.json"
    with blamed(file):
        if not any(name.startswith(TOWER) for name in shapes):
            sources.append(tower_source(folder, config))
            shapes |= sources[-1].shapes()
        check_settings(file, config.to_dict(), shapes)
        if not is_eva(config):
            name_clip(config, folder)
        name_sizes(config, shapes)
        model = without_weights(lambda: LlavaLlamaAttForCausalLM(config))
    tensors = (pair for source in sources for pair in source.tensors())
    report = load_strictly(
        model,
        positions_fitted(tensors, model),
        rename=lambda name: None if is_leftover(name, config) else name,
        dtype=dtype,
        source=str(folder),
        optional=lambda name: name == POSITION_IDS,  # a range, which a trainer's file leaves out
    )
    log.info("%s: ignored %s", folder, report.ignored)
    if (folder / LORA_CONFIG).is_file():
        merge_lora(model, folder)
    if is_eva(config):
        without_key_bias(model.get_vision_tower(), dtype)
    resize_to_tokenizer(model, folder, base)
    model.generation_config = read_generation_config(
        folder / "generation_config.json", model.generation_config
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def is_leftover(name: str, config: LlavaConfig) -> bool:
    """Whether published files are known to hold this key and the model is known not to."""
    if _COMPUTED.fullmatch(name):
        return True
    if name == POSITION_IDS and "qformer" not in config.bert_type:
        return True
    inner = name.removeprefix(TOWER)
    if inner == name or not is_eva(config):
        return False
    return eva_name(inner, eva_sizes(config).num_hidden_layers) is None


def positions_fitted(
    tensors: Named, model: LlavaLlamaAttForCausalLM
) -> Iterator[tuple[str, Tensor]]:
    """An EVA's position embeddings for the image size asked for, interpolated bicubically."""
    wanted = model.state_dict().get(f"{TOWER}pos_embed")
    for name, tensor in tensors:
        if name == f"{TOWER}pos_embed" and wanted is not None and tensor.dim() == 3:
            tensor = resized_positions(tensor, wanted.shape[1])
        yield name, tensor


def resize_to_tokenizer(model: LlavaLlamaAttForCausalLM, folder: Path, base: Path | None) -> None:
    """As many words as the tokenizer has, as upstream's loader does; new ones are the mean of all.

    A checkpoint without tokenizer keeps its size.
    """
    for place in filter(None, (folder, base)):
        try:
            tokenizer = PromptTokenizer.load(place, model.config)
        except CheckpointError:
            continue
        before, after = model.config.vocab_size, len(tokenizer)
        if before != after:
            model.resize_token_embeddings(after, mean_resizing=False)
            for words in (model.model.embed_tokens, model.lm_head):
                with torch.no_grad():
                    words.weight[before:] = words.weight[:before].mean(dim=0)
        return
