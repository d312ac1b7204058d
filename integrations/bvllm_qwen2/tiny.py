"""A tiny but complete model with random weights, made offline: for tests and `bvllm demo`."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, Qwen2Config

from bvllm_adapters.hosts.tiny_tokenizer import tiny_tokenizer
from bvllm_qwen2.configuration import BvllmQwen2Config
from bvllm_qwen2.modeling import BvllmQwen2ForConditionalGeneration
from bvllm_qwen2.processing import BvllmQwen2Processor, image_processor_for


def tiny_model(
    seed: int = 0, vision_config: CLIPVisionConfig | None = None
) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
    """Real classes, small sizes, weights from `seed`; torch's global generator is left as it was.

    Its words are English and its answers nonsense.

    Args:
        vision_config: another tower than the usual one, which makes 16 patches of 64 x 64 pixels.
    """
    vision_config = vision_config or CLIPVisionConfig(
        image_size=64,
        patch_size=16,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    tokenizer = tiny_tokenizer()
    processor = BvllmQwen2Processor(image_processor_for(vision_config), tokenizer)
    config = BvllmQwen2Config(
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            # Louder than usual, so that what goes in can be told from what comes out.
            initializer_range=0.2,
        ),
        vision_config=vision_config,
        # Loud enough for the question to change which frames are chosen; louder, and all of the
        # selector's queries would agree on one frame.
        initializer_range=0.1,
        balanced_tokenizer={
            "num_frames": 8,
            "tokens_per_frame": 4,
            "max_tokens": 32,
            "qformer_width": 64,
            "qformer_layers": 2,
            "qformer_heads": 4,
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BvllmQwen2ForConditionalGeneration(config)
    model.eval()  # type: ignore[no-untyped-call]
    return model, processor
