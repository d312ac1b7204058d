"""Hosts in the sizes that were published, with random weights: their work, without a download."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bvllm_adapters.hosts.adapter import TOKENIZER
from bvllm_adapters.hosts.tiny_tokenizer import tiny_tokenizer
from bvllm_adapters.hosts.wrap import wrap

MISTRAL_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": None,
}
VIDEOLLAMA2: dict[str, Any] = MISTRAL_7B | {
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_hidden_size": 1024,
    "mm_projector_type": "stc_connector",
    "num_frames": 16,
}
# VideoLLaMA2.1; its language model is Qwen2-7B.
VIDEOLLAMA2_1: dict[str, Any] = VIDEOLLAMA2 | {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_hidden_size": 1152,
    "mm_projector_type": "stc_connector_v35",
}
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


def build(
    name: str,
    *,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
    sizes: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """A native or wrapped model in eval mode, and a processor whose words mean nothing to it.

    Args:
        name: class of the model, one of `HOSTS`. device: "meta": no weights, just their shapes.
        sizes: fields of its config that are to differ from what was published.

    Raises:
        ValueError: for a class whose published sizes are not known.
    """
    if name not in HOSTS:
        raise ValueError(f"host: got {name!r}, wanted one of {sorted(HOSTS)}")
    model_class, config, processor = HOSTS[name](name, sizes or {})
    with torch.device(device), default_dtype(dtype):
        model = model_class(config)
        if not hasattr(model, TOKENIZER):
            wrap(model)
    model.eval().requires_grad_(False)
    return model, processor


def weights_bytes(model: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters())


def _qwen2(name: str, sizes: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    from bvllm_qwen2 import (
        BvllmQwen2Config,
        BvllmQwen2ForConditionalGeneration,
        BvllmQwen2Processor,
    )
    from bvllm_qwen2.processing import image_processor_for

    config = BvllmQwen2Config(**sizes)
    processor = BvllmQwen2Processor(image_processor_for(config.vision_config), tiny_tokenizer())
    config.image_token_id = processor.image_token_id
    config.video_token_id = processor.video_token_id
    return BvllmQwen2ForConditionalGeneration, config, processor


def _videollama2(name: str, sizes: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    from bvllm_videollama2.configuration import tower_config
    from bvllm_videollama2.modeling import MODELS
    from bvllm_videollama2.preprocessing import Videollama2Processor, image_processor_for
    from bvllm_videollama2.tiny import CHAT_TEMPLATE

    fields = VIDEOLLAMA2_1 if "Qwen2" in name else VIDEOLLAMA2
    config: Any = MODELS[name].config_class(**{**fields, **sizes})  # type: ignore[misc]
    processor = Videollama2Processor(
        tiny_tokenizer(CHAT_TEMPLATE),
        image_processor_for(tower_config(config)),
        config.num_frames,
        config.model_type,
    )
    return MODELS[name], config, processor


def _llama_vid(name: str, sizes: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    from bvllm_llama_vid import LlamaVidProcessor, LlavaConfig, LlavaLlamaAttForCausalLM
    from bvllm_llama_vid.preprocessing import image_processor_of
    from bvllm_llama_vid.prompt_tokenizer import PromptTokenizer
    from bvllm_llama_vid.tiny import tiny_tokenizer as llama_tokenizer

    config: Any = LlavaConfig()
    for field, value in {**LLAMA_VID, **sizes}.items():
        setattr(config, field, value)
    with tempfile.TemporaryDirectory() as folder:
        pieces = Path(folder) / "tokenizer.model"
        pieces.write_bytes(llama_tokenizer())
        tokenizer = PromptTokenizer(pieces, {})
        images = image_processor_of(config, Path(folder))
    return LlavaLlamaAttForCausalLM, config, LlamaVidProcessor(tokenizer, images)


HOSTS: dict[str, Callable[[str, Mapping[str, Any]], tuple[Any, Any, Any]]] = {
    "BvllmQwen2ForConditionalGeneration": _qwen2,
    "Videollama2MistralForCausalLM": _videollama2,
    "Videollama2Qwen2ForCausalLM": _videollama2,
    "LlavaLlamaAttForCausalLM": _llama_vid,
}
"""Class of a host's model and overriding fields -> the class itself, its config, a processor."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Weights that are made inside are of this dtype from the beginning."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
