"""All that bvllm_adapters needs to know of AcmeVideoForCausalLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from acme_host.modeling import VIDEO, AcmeVideoForCausalLM, tiny_model
from bvllm_adapters import BalancedTokenizerConfig, FrameFeatures, VisualTokens
from bvllm_adapters.features import frame_and_patches
from bvllm_adapters.hosts.splice import splice
from bvllm_adapters.question import QuestionTokenizer, pad
from bvllm_adapters.seeing.encoding import encode_pixels
from bvllm_adapters.video.frames import Video


class Overrides:
    """Modifications while wrapped:
    - `video_tokens`: the tokenizer's tokens instead of every patch of every frame.
    """

    def video_tokens(self: Any, pixels: Tensor, question_ids: Tensor) -> Tensor:
        features = encode_pixels(
            lambda chunk: tokens_of(self, chunk), pixels, None, self.balanced_tokenizer
        )
        tokens: Tensor = self.balanced_tokenizer([features], [question_ids])[0].tokens
        return tokens


def tokens_of(model: AcmeVideoForCausalLM, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(k, 3, S, S) pixels -> (k, C) frame features, (k, P, C) patches."""
    tokens = model.vision_tower(pixels.to(model.dtype)).last_hidden_state
    feature = model.balanced_tokenizer.config.frame_feature
    return frame_and_patches(tokens, has_cls=True, frame_feature=feature)


class AcmeHost:
    api = 3
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

    def tower(self, model: AcmeVideoForCausalLM) -> nn.Module:
        return model.vision_tower

    def pixels(
        self, processor: ByteProcessor, frames: npt.NDArray[np.uint8], *, is_image: bool = False
    ) -> Tensor:
        return processor.pixels(frames)

    def look(self, model: AcmeVideoForCausalLM, pixels: Tensor) -> FrameFeatures:
        return FrameFeatures(*tokens_of(model, pixels))

    def tiny(self, folder: Path, name: str) -> None:
        """A checkpoint to try, for `bvllm hosts --certify`."""
        tiny_model().save_pretrained(folder)

    def call(
        self,
        model: AcmeVideoForCausalLM,
        processor: ByteProcessor,
        videos: Sequence[Video | None],
        questions: Sequence[str],
        *,
        answers: Sequence[str] | None = None,
        padding_side: str = "left",
        to: str = "forward",
    ) -> dict[str, Any]:
        """The arguments of the model's own forward(), as its users make them."""
        if to == "generate":
            raise NotImplementedError("its generate() takes no video")
        if answers is not None:
            raise NotImplementedError("its forward() takes no labels")
        if len(questions) > 1:
            raise NotImplementedError("it takes one prompt at a time")
        ids = processor.encode(questions[0])
        inputs = {"question_ids": QuestionTokenizer()(questions[0])}
        if videos[0] is None:
            return {**inputs, "input_ids": torch.tensor([ids])}
        pixels = processor.pixels(videos[0].frames)
        return {**inputs, "input_ids": torch.tensor([[VIDEO, *ids]]), "pixels": pixels}

    def answers(
        self,
        model: AcmeVideoForCausalLM,
        processor: ByteProcessor,
        questions: Sequence[str],
        tokens: Sequence[VisualTokens],
        **generate: Any,
    ) -> list[str]:
        ids, mask = pad([torch.tensor([VIDEO, *processor.encode(text)]) for text in questions])
        prompts = splice(
            ids,
            model.get_input_embeddings(),
            [video.tokens for video in tokens],
            {VIDEO},
            attention_mask=mask,
            padding_side="left",
        )
        said = model.language_model.generate(
            inputs_embeds=prompts.inputs_embeds, attention_mask=prompts.attention_mask, **generate
        )
        return [processor.decode(ids.tolist()) for ids in said]


class ByteProcessor:
    """Text as bytes, and frames scaled to the towers' square."""

    side = 32

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def pixels(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.nn.functional.interpolate(pixels, (self.side, self.side), mode="area")

    def save_pretrained(self, folder: Path) -> None:
        """There is nothing to write: every model has the same one."""


HOST = AcmeHost()
