"""A saved model's weights, and published EVA-CLIP weights (eva_vit_g.pth) for the tower."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bvllm_adapters.hosts.language_model import read_generation_config
from bvllm_adapters.weights.checkpoint import (
    load_strictly,
    read_pickle,
    read_shapes,
    read_tensors,
    weight_files,
)
from bvllm_adapters.weights.empty import without_weights
from bvllm_adapters.weights.eva import eva_name, resized_positions, without_key_bias
from bvllm_adapters.weights.json_file import blamed, read_json
from bvllm_adapters.weights.sizes import check_kinds, check_present, check_settings
from bvllm_qwen2.configuration import BvllmQwen2Config, EvaVisionConfig, TimmVisionConfig
from bvllm_qwen2.modeling import BvllmQwen2ForConditionalGeneration
from bvllm_qwen2.vision_tower import build_eva_tower

log = logging.getLogger("bvllm_adapters")

# timm names its modules as the published file does, so the mapping is: the same name behind the
# prefix. The file's anchor, by which the prefix (often none) is found:
_ANCHOR = "patch_embed.proj.weight"


def load(
    folder: str | Path, *, dtype: torch.dtype, attn_implementation: str | None = None
) -> BvllmQwen2ForConditionalGeneration:
    """The model that save_pretrained wrote, in eval mode.

    Unlike from_pretrained, which makes `dtype` that of the whole process for a while, it changes
    nothing outside of the model.

    Args:
        dtype: of all weights. attn_implementation: as transformers names it; None: its choice.

    Raises:
        CheckpointError: files that cannot be read; keys missing, unexpected or misshapen.
    """
    folder = Path(folder)
    file, files = folder / "config.json", weight_files(folder)
    fields = read_json(file)
    check_settings(file, fields, dict(read_shapes(files)))
    check_kinds(file, fields, BvllmQwen2Config().to_dict())
    heads = "num_attention_heads"
    check_present(file, fields.get("text_config"), f"{heads} rms_norm_eps", "text_config.")
    if (fields.get("vision_config") or {}).get("model_type") != TimmVisionConfig.model_type:
        check_present(file, fields.get("vision_config"), heads, "vision_config.")
    with blamed(file):
        config = BvllmQwen2Config.from_dict(fields)
        config.name_or_path = str(folder)
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        model = without_weights(lambda: BvllmQwen2ForConditionalGeneration(config))
    tied = bool(config.text_config.tie_word_embeddings)
    load_strictly(
        model,
        read_tensors(files),
        dtype=dtype,
        source=str(folder),
        optional=lambda name: tied and name == "language_model.lm_head.weight",
    )
    if tied:
        model.tie_weights()
    without_key_bias(model.vision_tower.encoder, dtype)
    model.config.dtype = dtype
    model.generation_config = read_generation_config(
        folder / "generation_config.json", model.generation_config
    )
    model.freeze()
    model.eval()  # type: ignore[no-untyped-call]
    return model


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file without running any code of it."""
    file = Path(file)
    return load_file(file) if file.suffix == ".safetensors" else read_pickle(file)


def load_eva(file: str | Path, config: EvaVisionConfig) -> nn.Module:
    """An EVA encoder with published weights, in the file's dtype.

    Position embeddings of another image size are interpolated.

    Raises:
        CheckpointError: listing what is missing, unexpected or of another shape.
    """
    eva = without_weights(lambda: build_eva_tower(config))
    state_dict = read_state_dict(file)
    prefixes = [name.removesuffix(_ANCHOR) for name in state_dict if name.endswith(_ANCHOR)]
    if len(prefixes) != 1:
        raise ValueError(f"{file}: got {len(prefixes)} keys '...{_ANCHOR}', wanted one EVA")
    positions = f"{prefixes[0]}pos_embed"
    if positions in state_dict:
        count = eva.get_parameter("pos_embed").shape[1]
        state_dict[positions] = resized_positions(state_dict[positions], count)

    def ours(name: str) -> str | None:
        if not name.startswith(prefixes[0]):
            return None
        return eva_name(name.removeprefix(prefixes[0]), config.num_hidden_layers)

    report = load_strictly(eva, state_dict.items(), rename=ours, source=str(file))
    log.info("%s: left out %s", file, sorted(report.ignored))
    without_key_bias(eva, state_dict[f"{prefixes[0]}cls_token"].dtype)
    return eva
