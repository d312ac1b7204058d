"""Tiny but complete models and checkpoints with random weights, made offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bvllm_adapters.hosts.tiny_tokenizer import tiny_tokenizer
from bvllm_videollama2.modeling import MODELS, Videollama2MetaForCausalLM

TOWERS = {
    "clip": "openai/clip-vit-large-patch14-336",
    "siglip": "google/siglip-so400m-patch14-384",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(
    family: str = "Qwen2",
    tower: str = "clip",
    projector: str = "stc_connector",
    seed: int = 0,
    **fields: Any,
) -> Videollama2MetaForCausalLM:
    """Real classes, small sizes, weights from `seed`; torch's global generator stays as it was.

    Args:
        family: Mistral, Qwen2, Mixtral or Llama. tower: clip or siglip.
        projector: as config.json names it. fields: others of the config, such as num_frames=4.
    """
    # These two projectors need the tower to be as wide as the language model.
    width = 64 if projector in ("spatial_conv", "spatial_pool") else 48
    model = MODELS[f"Videollama2{family}ForCausalLM"]
    settings: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        # Louder than usual, so that what goes in can be told from what comes out.
        "initializer_range": 0.2,
        "mm_vision_tower": TOWERS[tower],
        "mm_vision_config": {
            "hidden_size": width,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 56,
            "initializer_factor": 5.0,
        },
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": width,
        "mm_projector_type": projector,
        "num_frames": 8,
        "mm_qformer_config": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
        },
    }
    config: Any = model.config_class(**(settings | fields))  # type: ignore[misc]
    config.architectures = [model.__name__]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = model(config)
    made.eval()  # type: ignore[no-untyped-call]
    return made


def tiny_checkpoint(folder: str | Path, **model: Any) -> Videollama2MetaForCausalLM:
    """Write a tiny model into a folder as checkpoints are published, with its tokenizer.

    Its words are English and its answers nonsense. Args: see `tiny_model`.
    """
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE)
    made = tiny_model(**({"vocab_size": len(tokenizer)} | model))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return made
