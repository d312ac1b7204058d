"""The model as its authors have it: knows nothing of bvllm_adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

VIDEO = -201  # stands for the video in the prompt's ids


class AcmeVideoConfig(PreTrainedConfig):
    model_type = "acme_video"
    sub_configs = {"text_config": LlamaConfig, "vision_config": CLIPVisionConfig}  # noqa: RUF012

    def __init__(self, text_config: Any = None, vision_config: Any = None, **kwargs: Any) -> None:
        as_text, as_vision = text_config or {}, vision_config or {}
        self.text_config = LlamaConfig(**as_text) if isinstance(as_text, dict) else as_text
        self.vision_config = (
            CLIPVisionConfig(**as_vision) if isinstance(as_vision, dict) else as_vision
        )
        super().__init__(**kwargs)


class AcmeVideoForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = AcmeVideoConfig

    def __init__(self, config: AcmeVideoConfig) -> None:
        super().__init__(config)
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.projector = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = LlamaForCausalLM(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def video_tokens(self, pixels: Tensor, question_ids: Tensor) -> Tensor:
        """(T, 3, S, S) frames -> (T P, D): every patch of every frame."""
        states = self.vision_tower(pixels).last_hidden_state
        return self.projector(states[:, 1:]).flatten(0, 1)

    def embed(self, input_ids: Tensor, pixels: Tensor | None, question_ids: Tensor) -> Tensor:
        """(1, L) ids with at most one video -> (1, S, D)."""
        place = int((input_ids[0] == VIDEO).nonzero()) if VIDEO in input_ids else None
        words = self.get_input_embeddings()(input_ids.clamp_min(0))
        if place is None or pixels is None:
            return words
        video = self.video_tokens(pixels, question_ids)[None]
        return torch.cat([words[:, :place], video, words[:, place + 1 :]], dim=1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixels: Tensor | None = None,
        question_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixels, question_ids)
        return self.language_model(inputs_embeds=inputs_embeds, **kwargs)


def tiny_model(seed: int = 0) -> AcmeVideoForCausalLM:
    """Random weights, real classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AcmeVideoForCausalLM(
            AcmeVideoConfig(
                text_config={
                    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64,
                    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
                },
                vision_config={
                    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
                },
            )
        )  # fmt: skip
    return model.eval()
