"""Four of transformers' video models in the sizes that were published, without their weights.

Sizes are those of the checkpoints' config.json. `PARAMETERS` says how many their files hold, and
tests/test_which_settings.py that the models made of these sizes have as many.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig

from bvllm_adapters.bench.published import random_model

QWEN2_5_TOWER: dict[str, Any] = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
    "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
QWEN3_TOWER: dict[str, Any] = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
    "patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
    "num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
    "vision_use_head": False,
}  # fmt: skip
QWEN2_7B: dict[str, Any] = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
}  # fmt: skip
ROPE: dict[str, Any] = {
    "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-VL-3B": {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
            "max_position_embeddings": 128000, "rope_parameters": ROPE,
            "tie_word_embeddings": True,
        },
        "vision_config": {**QWEN2_5_TOWER, "out_hidden_size": 2048},
    },
    "Qwen2.5-VL-7B": {
        "model_type": "qwen2_5_vl",
        "text_config": {**QWEN2_7B, "max_position_embeddings": 128000, "rope_parameters": ROPE},
        "vision_config": {**QWEN2_5_TOWER, "out_hidden_size": 3584},
    },
    "Qwen3-VL-8B": {
        "model_type": "qwen3_vl",
        "text_config": {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 151936, "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {**QWEN3_TOWER, "out_hidden_size": 4096},
    },
    "LLaVA-OneVision-7B": {
        "model_type": "llava_onevision",
        "text_config": {**QWEN2_7B, "model_type": "qwen2", "max_position_embeddings": 32768},
        "vision_config": SIGLIP,
    },
}  # fmt: skip
CLASSES = {
    "Qwen2.5-VL-3B": "Qwen2_5_VLForConditionalGeneration",
    "Qwen2.5-VL-7B": "Qwen2_5_VLForConditionalGeneration",
    "Qwen3-VL-8B": "Qwen3VLForConditionalGeneration",
    "LLaVA-OneVision-7B": "LlavaOnevisionForConditionalGeneration",
}
# What the checkpoints' own files say of videos; and that pictures of long ones shrink, as they do
# in qwen-vl-utils and, from some version on, in transformers.
VIDEO_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2_5_VLForConditionalGeneration": (
        "Qwen2VLVideoProcessor",
        {
            "size": {"shortest_edge": 3136, "longest_edge": 12845056},
            "cap_pixels_per_frame": True,
        },
    ),
    "Qwen3VLForConditionalGeneration": (
        "Qwen3VLVideoProcessor",
        {
            "size": {"shortest_edge": 4096, "longest_edge": 25165824},
            "cap_pixels_per_frame": True,
        },
    ),
    "LlavaOnevisionForConditionalGeneration": ("LlavaOnevisionVideoProcessor", {}),
}
PARAMETERS = {  # of the published checkpoints
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen3-VL-8B": 8_767_123_696,
    "LLaVA-OneVision-7B": 8_030_348_832,
}


def build(name: str) -> Any:
    """The model in bfloat16 and eval mode, on the meta device: it takes no memory."""
    config = AutoConfig.for_model(**CONFIGS[name])
    model_class = getattr(transformers, CLASSES[name])
    model = random_model(lambda: model_class(config), "meta", torch.bfloat16)
    return model.eval().requires_grad_(False)


def video_processor(name: str) -> Any:
    kind, settings = VIDEO_PROCESSORS[CLASSES[name]]
    return getattr(transformers, kind)(**settings)
