"""A spatial sampler that begins as LLaMA-VID's own context attention.

Copied: `vlm_att_encoder` (the sampler's Q-Former), `vlm_att_query` (its queries), `vlm_att_ln`
(its layer norm); and with `projection="linear"` also `vlm_att_projector` and
`vlm_att_val_projector`, which have the shapes of its two Linear layers.

Fresh: the frame selector, as LLaMA-VID has none; a projection of another kind; the sampler's layer
norm, if the checkpoint has none. LLaMA-VID never composed its two projectors: what the first gives
was only compared with patches, what the second takes was a mean of patches. So that pair is a
beginning of the right scale and no trained map; train the projection.

Ignored: `vlm_att_key_projector`, `mm_projector`, the last layer's text half, `position_ids`.
"""

from __future__ import annotations

from typing import Any

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.hosts.warm_start import WarmStart, fill, named_tensors, qformer_keys
from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_adapters.weights.qformer_names import LAVIS_NAMES


def from_llama_vid(tokenizer: BalancedTokenizer, source: Any) -> WarmStart:
    """Fill the spatial sampler, in place, with what `source` was trained to.

    Args:
        tokenizer: with a spatial sampler of the checkpoint's sizes; with tokens_per_frame up to
            its num_query, of which the first are taken.
        source: a LLaMA-VID model, its state dict, or a file or folder of its weights.

    Raises:
        CheckpointError: a tower width other than the Q-Former reads (`vlm_att_bert_proj`), weights
            that are missing, or shapes that differ.
    """
    prefix = "model.vlm_att_"
    state = {
        key.removeprefix("base_model.model."): tensor
        for key, tensor in named_tensors(source).items()
        if "vlm_att_" in key or "mm_projector" in key
    }
    if f"{prefix}bert_proj.weight" in state:
        raise CheckpointError(
            f"{prefix}bert_proj: the checkpoint's Q-Former reads projected patches, "
            "wanted one that reads the tower's own"
        )
    encoder = {key: state[key] for key in state if key.startswith(f"{prefix}encoder.")}
    wanted = {
        f"spatial_sampler.qformer.{name}": key
        for name, key in qformer_keys(encoder, LAVIS_NAMES).items()
    }
    if f"{prefix}query" not in state:
        raise CheckpointError(f"{prefix}query: missing, wanted a checkpoint with a Q-Former")
    wanted["spatial_sampler.queries"] = f"{prefix}query"
    parts = {"spatial_sampler.norm": "ln"} if f"{prefix}ln.weight" in state else {}
    if tokenizer.config.projection == "linear":
        parts |= {"projection.0": "projector", "projection.1": "val_projector"}
    for ours, theirs in parts.items():
        for kind in ("weight", "bias"):
            wanted[f"{ours}.{kind}"] = f"{prefix}{theirs}.{kind}"
    missing = sorted(key for key in wanted.values() if key not in state)
    if missing:
        raise CheckpointError(f"LLaMA-VID: missing {missing}")
    return fill(tokenizer, state, wanted, source="LLaMA-VID")
