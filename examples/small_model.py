"""A native model of the demo's size that has read nothing yet, around a vision tower."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config

from bvllm_adapters.hosts.tiny_tokenizer import tiny_tokenizer
from bvllm_qwen2 import (
    BvllmQwen2Config,
    BvllmQwen2ForConditionalGeneration,
    BvllmQwen2Processor,
    TimmVisionConfig,
)
from bvllm_qwen2.chat import RENDER
from bvllm_qwen2.processing import image_processor_for

CHAT_TEMPLATE = (
    RENDER + "{%- for message in messages -%}"
    "{{- '<|im_start|>' ~ message.role ~ '\n' ~ render(message.content) ~ '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
WIDTH = 96  # of all parts but the tower


def small_model(
    vision: TimmVisionConfig,
    words: list[str],
    *,
    num_frames: int = 4,
    tokens_per_frame: int = 4,
    max_question_tokens: int = 256,
    **settings: Any,
) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
    """Random weights from torch's own generator.

    Args:
        words: all that it knows. num_frames: K. tokens_per_frame: R; the budget is K R.
        max_question_tokens: of the processor. settings: others of the model's config.
    """
    tokenizer = tiny_tokenizer(words=words)
    processor = BvllmQwen2Processor(
        image_processor_for(vision),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        question_vocabulary=words,
        max_question_tokens=max_question_tokens,
    )
    config = BvllmQwen2Config(
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH * 5 // 2,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        vision_config=vision,
        balanced_tokenizer={
            "num_frames": num_frames,
            "tokens_per_frame": tokens_per_frame,
            "max_tokens": num_frames * tokens_per_frame,
            "qformer_width": WIDTH,
            "qformer_layers": 2,
            "qformer_heads": 4,
            "cross_attention_frequency": 1,
            "vocab_size": len(words),
            "vocabulary": words,
            "max_question_tokens": 32,
            "straight_through": True,
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        initializer_range=0.05,
        **settings,
    )
    return BvllmQwen2ForConditionalGeneration(config), processor
