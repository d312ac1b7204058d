"""A new model from published parts: a vision tower and a Qwen2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.weights.empty import without_weights
from bvllm_qwen2.configuration import BvllmQwen2Config, EvaVisionConfig, VisionConfig
from bvllm_qwen2.modeling import BvllmQwen2ForConditionalGeneration
from bvllm_qwen2.processing import BvllmQwen2Processor, image_processor_for
from bvllm_qwen2.weights import load_eva


def build(
    language_model: str | Path | Qwen2ForCausalLM,
    vision_tower: str | Path,
    *,
    tokenizer: Any = None,
    eva: EvaVisionConfig | None = None,
    dtype: torch.dtype = torch.float32,
    **balanced_tokenizer: Any,
) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
    """A model whose tower and language model are trained and whose BalancedTokenizer is not yet.

    Args:
        language_model: folder or hub id of a Qwen2, or the model itself.
        vision_tower: a file of EVA-CLIP weights (eva_vit_g.pth), or folder or hub id of a CLIP or
            SigLIP; their vision half is taken.
        tokenizer: of the language model; None: the one in its folder.
        eva: sizes of the EVA tower; None: EVA-CLIP-g at 224. Another image_size interpolates the
            position embeddings.
        dtype: of all weights.
        balanced_tokenizer: fields of its `BalancedTokenizerConfig`, such as max_tokens=512.

    Raises:
        ValueError: parts that do not fit; weights that are missing, unexpected or misshapen.
    """
    if isinstance(language_model, Qwen2ForCausalLM):
        if tokenizer is None:
            raise ValueError(
                "tokenizer: got None, wanted one with a language_model that is no folder"
            )
        llm: Any = language_model
        llm.to(dtype)
    else:
        llm = Qwen2ForCausalLM.from_pretrained(language_model, dtype=dtype)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(language_model)
    encoder, vision_config, image_processor = _tower(vision_tower, eva, dtype)

    processor = BvllmQwen2Processor(image_processor, tokenizer)
    config = BvllmQwen2Config(
        text_config=llm.config,
        vision_config=vision_config,
        balanced_tokenizer=balanced_tokenizer,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        dtype=dtype,
    )
    settings = config.balanced_tokenizer_config
    processor.max_question_tokens = settings.max_question_tokens
    if settings.vocabulary is not None:
        processor.question_vocabulary = [*settings.vocabulary]
    model = without_weights(lambda: BvllmQwen2ForConditionalGeneration(config))
    model.language_model = llm
    model.vision_tower.encoder = encoder
    model.vision_tower.freeze()
    model.balanced_tokenizer = BalancedTokenizer(settings).to(dtype)
    model.generation_config = llm.generation_config
    model.eval()  # type: ignore[no-untyped-call]
    return model, processor


def _tower(
    source: str | Path, eva: EvaVisionConfig | None, dtype: torch.dtype
) -> tuple[nn.Module, VisionConfig, Any]:
    if Path(source).is_file():
        eva = eva or EvaVisionConfig()
        return load_eva(source, eva).to(dtype), eva, image_processor_for(eva)
    if eva is not None:
        raise ValueError(f"vision_tower: got {source}, wanted a file of EVA weights with eva=")
    whole = AutoConfig.from_pretrained(source)
    config = getattr(whole, "vision_config", whole)
    if isinstance(config, CLIPVisionConfig):
        encoder: nn.Module = CLIPVisionModel.from_pretrained(source, dtype=dtype)
    elif isinstance(config, SiglipVisionConfig):
        encoder = SiglipVisionModel.from_pretrained(source, dtype=dtype)
    else:
        raise ValueError(
            f"vision_tower: got a {config.model_type}, wanted a CLIP or SigLIP, or EVA weights"
        )
    try:
        image_processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError):  # a folder with weights only
        image_processor = image_processor_for(config)
    return encoder, config, image_processor
