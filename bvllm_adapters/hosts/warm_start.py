"""A BalancedTokenizer that begins with published weights, each of them accounted for.

From InstructBLIP (what the paper begins with), from a checkpoint of the B-VLLM authors' code, or,
for its scout, from an image model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.weights.checkpoint import (
    CheckpointError,
    read_pickle,
    read_tensors,
    weight_files,
)
from bvllm_adapters.weights.qformer_names import INSTRUCTBLIP_NAMES, LAVIS_NAMES, renamed

Weights = Mapping[str, Tensor] | nn.Module | str | Path
"""A state dict, a model, or a file or folder of weights."""


@dataclass(frozen=True)
class WarmStart:
    """What became of published weights, and what did not come from them.

    Args:
        copied: our name -> the published one. ignored: published names without use here.
        fresh: our names that kept their first, random weights.
    """

    copied: dict[str, str]
    ignored: list[str]
    fresh: list[str]

    def __str__(self) -> str:
        return f"{len(self.copied)} copied, {len(self.ignored)} ignored, {len(self.fresh)} fresh"


def from_instructblip(tokenizer: BalancedTokenizer, source: Weights) -> WarmStart:
    """Both Q-Formers, both layer norms and both query sets from InstructBLIP, in place.

    Args:
        tokenizer: with a frame selector and a spatial sampler, of InstructBLIP's sizes.
        source: weights in LAVIS's names (`Qformer.bert.*`, `query_tokens`, `ln_vision.*`) or in
            transformers' (`qformer.*`, `query_tokens`, `vision_model.post_layernorm.*`).

    Queries are fewer here if num_frames or tokens_per_frame are: then the first are taken.

    Raises:
        CheckpointError: weights that are missing, or of other shapes than the tokenizer's.
    """
    state = named_tensors(source)
    lavis = any(".attention.self." in key for key in state)
    qformer = qformer_keys(state, LAVIS_NAMES if lavis else INSTRUCTBLIP_NAMES)
    norm = "ln_vision" if lavis else "vision_model.post_layernorm"
    queries = _only(state, "query_tokens")
    wanted = {}
    for stage in ("frame_selector", "spatial_sampler"):
        for name, key in qformer.items():
            wanted[f"{stage}.qformer.{name}"] = key
        wanted[f"{stage}.queries"] = queries
        for kind in ("weight", "bias"):
            if f"{stage}.norm.{kind}" in tokenizer.state_dict():
                wanted[f"{stage}.norm.{kind}"] = _only(state, f"{norm}.{kind}")
    return fill(tokenizer, state, wanted, source="InstructBLIP")


def from_bvllm(
    source: Weights, *, heads: int | None = None, **settings: Any
) -> tuple[BalancedTokenizer, WarmStart]:
    """The tokenizer of a checkpoint of the authors' own B-VLLM code, in eval mode.

    Sizes are read from the shapes. Settings are those their code has built in: 16 of the 32
    frame queries, temperature 0.5, a budget of 576, frames merged from a cosine of 0.5 (there:
    0.75 of (cosine + 1) / 2), CLS as it comes from the tower, two Linear layers without activation.
    Their evaluation draws noise; here it is "soft", the same choice without noise, unless
    evaluation="sample" asks for it.

    Args:
        source: a state dict, model, file (mm_projector.bin, non_lora_trainables.bin) or a folder
            that holds one.
        heads: of the Q-Formers, which no shape tells; None: one for each 64 of their width.
        settings: fields of `BalancedTokenizerConfig` that differ.

    Raises:
        CheckpointError: weights that are missing, unknown, or of shapes that do not fit.
    """
    state = {_without_prefix(key): tensor for key, tensor in named_tensors(source).items()}
    wanted = {
        "frame_selector.queries": "vlm_att_query_temporal",
        "spatial_sampler.queries": "vlm_att_query_spatial",
    }
    for ours, theirs in _AUTHORS.items():
        wanted |= {f"{ours}.{kind}": f"vlm_att_{theirs}.{kind}" for kind in ("weight", "bias")}
    missing = sorted({key for key in wanted.values() if key not in state})
    unknown = [key for key in state if key.startswith("vlm_att_") and not _AUTHORS_KEY.match(key)]
    if missing or unknown:
        raise CheckpointError(f"B-VLLM checkpoint: missing {missing}, unknown {sorted(unknown)}")
    sides = {}
    for stage, side in (("frame_selector", "temporal"), ("spatial_sampler", "spatial")):
        prefix = f"vlm_att_encoder_{side}."
        part = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
        sides[stage] = qformer_keys(part, LAVIS_NAMES)
        wanted |= {f"{stage}.qformer.{name}": key for name, key in sides[stage].items()}

    shape = {name: tuple(state[key].shape) for name, key in sides["frame_selector"].items()}
    layers = 1 + max(int(name.split(".")[1]) for name in shape if name.startswith("layers."))
    reading = [i for i in range(layers) if f"layers.{i}.cross_attention.key.weight" in shape]
    vocabulary, width = shape["word_embeddings.weight"]
    llm_width, vision_width = state["vlm_att_val_projector_spatial.weight"].shape
    preset: dict[str, Any] = {
        "num_frames": 16,
        "tokens_per_frame": state["vlm_att_query_spatial"].shape[1],
        "max_tokens": 576,
        "temperature": 0.5,
        "merge_threshold": 0.5,
        "vision_width": vision_width,
        "llm_width": llm_width,
        "qformer_width": width,
        "qformer_layers": layers,
        "qformer_heads": heads or max(1, width // 64),
        "qformer_ffn_width": shape["layers.0.query_ffn.inner.weight"][0],
        "cross_attention_frequency": reading[1] if len(reading) > 1 else layers,
        "vocab_size": vocabulary,
        "normalize_cls": False,
        "evaluation": "soft",
        "projection": "linear",
    }
    tokenizer = BalancedTokenizer(BalancedTokenizerConfig(**{**preset, **settings}))
    report = fill(tokenizer, state, wanted, source="B-VLLM checkpoint")
    if report.fresh:
        raise CheckpointError(f"B-VLLM checkpoint: missing what becomes {report.fresh}")
    return tokenizer.eval(), report


def from_image_model(tokenizer: BalancedTokenizer, source: Weights) -> WarmStart:
    """The scout's encoder from weights of its architecture, in the names of its library, in place.

    Args:
        tokenizer: with a scout that has an encoder of its own.
        source: keys may all stand behind one prefix, as the parts of larger models do.

    Raises:
        ValueError: there is no such scout.
        CheckpointError: weights that are missing, or of other shapes than the encoder's.
    """
    encoder = getattr(tokenizer.scout, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError("tokenizer: got no scout with an encoder, wanted one to fill")
    state = named_tensors(source)
    ours = encoder.state_dict()
    ends = [key.removesuffix(name) for name in ours for key in state if key.endswith(name)]
    prefixes = {end for end in ends if not end or end.endswith(".")}
    prefix = max(sorted(prefixes), key=ends.count, default="")
    # Buffers that its library works out anew are not published, but those that were learned are.
    learned = ("running_mean", "running_var")
    needed = [name for name, _ in encoder.named_parameters()]
    needed += [name for name, _ in encoder.named_buffers() if name.endswith(learned)]
    missing = [prefix + name for name in needed if prefix + name not in state]
    if missing:
        raise CheckpointError(f"scout: missing {missing}")
    wanted = {f"scout.encoder.{name}": prefix + name for name in ours if prefix + name in state}
    return fill(tokenizer, state, wanted, source="scout")


# Ours -> the authors'. Their code gives the patches to the layer norm of the temporal side.
_AUTHORS = {
    "frame_selector.projection": "projector_temporal",
    "spatial_sampler.norm": "ln_temporal",
    "projection.0": "projector_spatial",
    "projection.1": "val_projector_spatial",
}
# All that their code makes. bert_proj, for towers of other widths, it never could run.
_AUTHORS_KEY = re.compile(
    r"vlm_att_(query|encoder|projector|key_projector|val_projector|ln)_(temporal|spatial)(\.|$)"
)
_PREFIX = re.compile(r"(base_model\.)?(model\.)*")


def _without_prefix(key: str) -> str:
    return _PREFIX.sub("", key, count=1)


def qformer_keys(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, str]:
    """Our QFormer's names -> the published keys, without the last text half, which it lacks."""
    keys = renamed(cast(Mapping[str, Tensor], {key: key for key in state}), names)
    layers = [int(name.split(".")[1]) for name in keys if name.startswith("layers.")]
    last = f"layers.{max(layers, default=0)}.text_ffn."
    return {name: cast(Any, key) for name, key in keys.items() if not name.startswith(last)}


def fill(
    tokenizer: BalancedTokenizer,
    state: Mapping[str, Tensor],
    wanted: Mapping[str, str],
    *,
    source: str,
) -> WarmStart:
    """Copy state[published] to each of our names; nothing is changed if anything does not fit.

    A published (1, Q, H) set of queries fills one of Q or fewer.

    Raises:
        CheckpointError: listing names that the tokenizer lacks, and shapes that differ.
    """
    ours = tokenizer.state_dict()
    unknown = sorted(name for name in wanted if name not in ours)
    values, wrong = {}, []
    for name, key in wanted.items():
        if name in ours:
            value, target = state[key], ours[name]
            if name.endswith(".queries") and value.dim() == 3:
                value = value[0, : len(target)]
            if value.shape != target.shape:
                wrong.append(f"{key} {tuple(value.shape)}, wanted {tuple(target.shape)} as {name}")
            values[name] = value
    # Each stage must be filled whole: too few published layers are as wrong as too many.
    stages = {name.split("qformer.")[0] for name in wanted if "qformer." in name}
    missing = sorted(
        name
        for name in ours
        if name not in wanted and any(name.startswith(f"{stage}qformer.") for stage in stages)
    )
    if unknown or wrong or missing:
        raise CheckpointError(
            f"{source}: does not fit the tokenizer: it lacks {unknown}; "
            f"of another shape {wrong}; missing for {missing}"
        )
    with torch.no_grad():
        for name, value in values.items():
            ours[name].copy_(value)
    used = set(wanted.values())
    return WarmStart(
        copied=dict(wanted),
        ignored=[key for key in state if key not in used],
        fresh=[name for name in ours if name not in wanted],
    )


def named_tensors(source: Weights) -> dict[str, Tensor]:
    """The tensors of a state dict, a model, a file of weights, or a folder that holds one."""
    if isinstance(source, nn.Module):
        return dict(source.state_dict())
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    files = [path]
    if path.is_dir():
        files = [
            path / name
            for name in ("non_lora_trainables.bin", "mm_projector.bin")
            if (path / name).is_file()
        ][:1] or weight_files(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return dict(read_tensors(files))
    return read_pickle(path)


def _only(state: Mapping[str, Tensor], ending: str) -> str:
    """The one key that is `ending`, or ends with it behind a dot."""
    found = [key for key in state if key == ending or key.endswith(f".{ending}")]
    if len(found) != 1:
        raise CheckpointError(f"InstructBLIP: got {len(found)} keys '{ending}', wanted one")
    return found[0]
