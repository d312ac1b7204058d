"""All that bvllm_adapters needs to know of AcmeVideoForCausalLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acme_host.modeling import VIDEO, AcmeVideoForCausalLM
from bvllm_adapters import BalancedTokenizerConfig, FrameFeatures, Video, VisualTokens
from bvllm_adapters.splice import splice


class Overrides:
    """Modifications while wrapped:
    - `video_tokens`: the tokenizer's tokens instead of every patch of every frame.
    """

    def video_tokens(self: Any, pixels: Tensor, question_ids: Tensor) -> Tensor:
        features = HOST.features(self, pixels)
        tokens: Tensor = self.balanced_tokenizer([features], [question_ids])[0].tokens
        return tokens


class AcmeHost:
    api = 1
    overrides = Overrides

    def load(self, folder: Path, *, dtype: torch.dtype) -> AcmeVideoForCausalLM:
        model: AcmeVideoForCausalLM = AcmeVideoForCausalLM.from_pretrained(folder, dtype=dtype)
        return model

    def processor(self, folder: Path) -> ByteProcessor:
        return ByteProcessor()

    def config(self, model: AcmeVideoForCausalLM) -> BalancedTokenizerConfig:
        return BalancedTokenizerConfig(
            vision_width=model.config.vision_config.hidden_size,
            llm_width=model.config.text_config.hidden_size,
            # Small, as the model is: a real host would keep the paper's sizes.
            num_frames=8, tokens_per_frame=4,
            qformer_width=24, qformer_layers=2, qformer_heads=2,
        )  # fmt: skip

    def features(
        self, model: AcmeVideoForCausalLM, pixels: Tensor, seconds: Tensor | None = None
    ) -> FrameFeatures:
        states = model.vision_tower(pixels).last_hidden_state
        return FrameFeatures(states[:, 0], states[:, 1:], seconds)  # type: ignore[arg-type]

    def encode(
        self, model: AcmeVideoForCausalLM, processor: ByteProcessor, video: Video
    ) -> FrameFeatures:
        pixels = processor.pixels(video, model.config.vision_config.image_size)
        return self.features(model, pixels.to(model.dtype), torch.from_numpy(video.seconds))

    def answer(
        self,
        model: AcmeVideoForCausalLM,
        processor: ByteProcessor,
        question: str,
        tokens: VisualTokens,
        **generate: Any,
    ) -> str:
        ids = torch.tensor([[VIDEO, *processor.encode(question)]])
        prompt = splice(ids, model.get_input_embeddings(), [tokens.tokens], {VIDEO})
        said = model.language_model.generate(
            inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, **generate
        )
        return processor.decode(said[0].tolist())


class ByteProcessor:
    """Text as bytes, and frames scaled to the tower's square."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def pixels(self, video: Video, side: int) -> Tensor:
        frames = torch.from_numpy(video.frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.nn.functional.interpolate(frames, (side, side), mode="area")


HOST = AcmeHost()
