"""LLaMA-VID's own: two kinds of tokens a frame, one led by the question, the rest pooled.

Axes: F frames times prompts, Q queries, L text tokens, P patches, C vision width, H width of the
text encoder, D width of the language model, n content tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvllm_adapters.question import QuestionTokenizer, pad
from bvllm_adapters.weights.projectors import plain_projector
from bvllm_llama_vid.configuration import grid_of, qformer_sizes, question_vocabulary
from bvllm_llama_vid.text_encoder import PublishedQFormer, TextEncoder, raw_bert

CHUNK = 64  # frames whose text encoding is held at a time


def add_context_attention(model: Any, config: Any) -> None:
    """Give upstream's `vlm_att_*` to the language model, where they lie in published weights."""
    sizes = qformer_sizes(config)
    kind: str = config.bert_type
    model.vlm_att_tokenlizer = QuestionTokenizer(256, question_vocabulary(config))
    sizes = replace(sizes, vocab_size=model.vlm_att_tokenlizer.vocab_size)
    vision = config.mm_hidden_size

    model.vlm_att_bert_proj = None
    if "qformer" in kind:
        if "layer:" in kind:
            sizes = replace(sizes, num_hidden_layers=int(kind.split(":")[-1]))
        model.vlm_att_encoder = TextEncoder(PublishedQFormer(sizes))
        model.vlm_att_query = nn.Parameter(
            torch.empty(1, config.num_query, sizes.hidden_size).normal_(std=0.02)
        )
        if "pretrain" in kind and vision != sizes.encoder_width:
            model.vlm_att_bert_proj = nn.Linear(vision, sizes.encoder_width)
        if "pretrain" in kind:
            model.vlm_att_ln = nn.LayerNorm(sizes.encoder_width)
    elif "raw" in kind:
        model.vlm_att_encoder = TextEncoder(raw_bert(sizes))
        model.vlm_att_bert_proj = nn.Linear(vision, sizes.hidden_size)
    else:
        raise ValueError(f"bert_type: got {kind!r}, wanted a name with 'qformer' or 'raw'")
    model.vlm_att_projector = nn.Linear(sizes.hidden_size, vision)
    model.vlm_att_key_projector = nn.Linear(vision, vision)
    model.vlm_att_val_projector = nn.Linear(vision, config.hidden_size)

    frozen = ["encoder", "query", "ln"] if "freeze" in kind else []
    frozen += ["projector", "key_projector", "val_projector"] if "freeze_all" in kind else []
    for name in frozen:
        if hasattr(model, f"vlm_att_{name}"):
            getattr(model, f"vlm_att_{name}").requires_grad_(False)


def context_and_content(model: Any, config: Any, frames: Tensor, prompts: list[str]) -> Tensor:
    """Tokens of one video for each prompt: (prompts * T, 1 + n, D), prompt by prompt.

    Args:
        model: what holds `vlm_att_*` and `mm_projector`.
        frames: (T, P or 1 + P, C) of the tower, or precomputed without CLS. prompts: questions.
    """
    weight = model.vlm_att_projector.weight
    text_ids, text_mask = pad([model.vlm_att_tokenlizer(prompt) for prompt in prompts])
    frames = frames.to(weight.device, weight.dtype).repeat(len(prompts), 1, 1)
    count = len(frames) // len(prompts)
    text_ids, text_mask = (
        text.to(weight.device).repeat_interleave(count, dim=0) for text in (text_ids, text_mask)
    )
    patches = frames
    # The tower says how many patches a frame has. Upstream tells a CLS token by an odd number of
    # tokens, which would cost a tower of 15 x 15 patches its first patch.
    has_cls = frames.shape[1] == model.vision_tower.num_patches + 1
    if has_cls and config.mm_vision_select_feature == "patch":
        patches = frames[:, 1:]

    if "qformer" in config.bert_type:
        seen = frames if model.vlm_att_bert_proj is None else model.vlm_att_bert_proj(frames)
        seen = model.vlm_att_ln(seen) if "pretrain" in config.bert_type else seen
        query = model.vlm_att_query.expand(len(seen), -1, -1)
        read = [
            model.vlm_att_encoder.bert(*part)
            for part in zip(
                *(t.split(CHUNK) for t in (query, seen, text_ids, text_mask)), strict=True
            )
        ]
    else:
        seen = model.vlm_att_bert_proj(patches)
        read = [
            model.vlm_att_encoder.bert(
                input_ids=ids,
                attention_mask=mask.long(),
                encoder_hidden_states=part,
                use_cache=False,
            ).last_hidden_state
            for ids, mask, part in zip(
                *(t.split(CHUNK) for t in (text_ids, text_mask, seen)), strict=True
            )
        ]
    text_query = model.vlm_att_projector(torch.cat(read))
    scores = text_query @ model.vlm_att_key_projector(patches).transpose(1, 2)
    # Upstream's own softmax is in the model's dtype; ours in float32, as all scores here.
    weights = (scores.float() / patches.shape[2] ** 0.5).softmax(dim=2).to(patches.dtype)
    if "raw" in config.bert_type:
        # Here the queries are the text's own tokens: padding must not count in their mean.
        keep = text_mask[..., None].to(weights.dtype)
        pooled = ((weights @ patches) * keep).sum(dim=1, keepdim=True) / keep.sum(1, keepdim=True)
    else:
        pooled = (weights @ patches).mean(dim=1, keepdim=True)
    context = model.vlm_att_val_projector(pooled)
    content = model.mm_projector(pool_patches(patches, grid_of(config)))
    return torch.cat([context, content], dim=1)


def pool_patches(patches: Tensor, grid: int | None) -> Tensor:
    """(F, P, C) -> (F, n, C): all patches, their mean (grid 1), or means over a grid's cells.

    Where the grid does not divide the patches' rows, cells are the largest that fit it, so that
    there may be more than grid * grid of them: what published weights were trained with.
    """
    if grid is None:
        return patches
    if grid == 1:
        return patches.mean(dim=1, keepdim=True)
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1] or side < grid:
        raise ValueError(
            f"compress_type: got grid:{grid} for {patches.shape[1]} patches, "
            "wanted a square of patches at least that wide"
        )
    square = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.avg_pool2d(square, side // grid).flatten(2).transpose(1, 2)


def build_projector(config: Any) -> nn.Module:
    """mm_projector_type "linear", "identity" or "mlpNx_gelu"."""
    kind = getattr(config, "mm_projector_type", "linear")
    inner, outer = config.mm_hidden_size, config.hidden_size
    if kind == "identity":
        return nn.Identity()
    projector = plain_projector(kind, inner, outer)
    if projector is None:
        raise ValueError(
            f"mm_projector_type: got {kind!r}, wanted 'linear', 'identity' or 'mlpNx_gelu'"
        )
    return projector
