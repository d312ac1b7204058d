"""Published sizes of VideoLLaMA2, and what a model of any sizes is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields of mm_qformer_config that size the Q-Formers, as their published configs name them.
QFORMER = {
    "hidden_size": "qformer_width",
    "num_hidden_layers": "qformer_layers",
    "num_attention_heads": "qformer_heads",
    "intermediate_size": "qformer_ffn_width",
    "cross_attention_frequency": "cross_attention_frequency",
    "vocab_size": "vocab_size",
}

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

PUBLISHED: dict[str, Mapping[str, Any]] = {
    "Videollama2MistralForCausalLM": VIDEOLLAMA2,
    "Videollama2Qwen2ForCausalLM": VIDEOLLAMA2_1,
}


def parts(name: str, fields: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The class, its config, and a processor whose words mean nothing to it."""
    from bvllm_adapters.hosts.tiny_tokenizer import tiny_tokenizer
    from bvllm_videollama2.configuration import tower_config
    from bvllm_videollama2.modeling import MODELS
    from bvllm_videollama2.preprocessing import Videollama2Processor, image_processor_for
    from bvllm_videollama2.tiny import CHAT_TEMPLATE

    config: Any = MODELS[name].config_class(**fields)  # type: ignore[misc]
    processor = Videollama2Processor(
        tiny_tokenizer(CHAT_TEMPLATE),
        image_processor_for(tower_config(config)),
        config.num_frames,
        config.model_type,
    )
    return MODELS[name], config, processor
