"""Published sizes of LLaMA-VID, and what a model of any sizes is made of."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# LLaMA-VID-7B for long videos: two tokens a frame; its Llama reads 64K tokens.
LLAMA_VID: dict[str, Any] = {
    "max_position_embeddings": 65536,
    "mm_vision_tower": "eva_vit_g.pth",
    "mm_hidden_size": 1408,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_projector_type": "mlp2x_gelu",
    "bert_type": "qformer_pretrain",
    "num_query": 32,
    "compress_type": "mean",
}

PUBLISHED: dict[str, Mapping[str, Any]] = {"LlavaLlamaAttForCausalLM": LLAMA_VID}


def parts(name: str, fields: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The class, its config, and a processor whose words mean nothing to it."""
    from bvllm_llama_vid import LlamaVidProcessor, LlavaConfig, LlavaLlamaAttForCausalLM
    from bvllm_llama_vid.preprocessing import image_processor_of
    from bvllm_llama_vid.prompt_tokenizer import PromptTokenizer
    from bvllm_llama_vid.tiny import tiny_tokenizer

    config: Any = LlavaConfig()
    for field, value in fields.items():
        setattr(config, field, value)
    with tempfile.TemporaryDirectory() as folder:
        pieces = Path(folder) / "tokenizer.model"
        pieces.write_bytes(tiny_tokenizer())
        tokenizer = PromptTokenizer(pieces, {})
        images = image_processor_of(config, Path(folder))
    return LlavaLlamaAttForCausalLM, config, LlamaVidProcessor(tokenizer, images)
