"""transformers' own video models as a host: see `bvllm_adapters.hosts.Host`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.features import FrameFeatures, VisualTokens
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.generation import Replies
from bvllm_adapters.video.frames import Video
from bvllm_adapters.weights.device import device_of
from bvllm_transformers.answers import answers, tail_of, tokens_of_one
from bvllm_transformers.arguments import check_seam
from bvllm_transformers.budget import check_sampled, own_width
from bvllm_transformers.calls import Budgeted
from bvllm_transformers.conversation_prompts import image_pixels
from bvllm_transformers.families import (
    check_asked,
    check_served,
    check_takes_image_embeds,
    family_of,
)
from bvllm_transformers.layout import (
    ImagePixels,
    Layout,
    check_shows_videos,
    encoder_inputs,
    frames_per_look,
    lay_out,
    video_pixels,
)
from bvllm_transformers.own_calls import own_call
from bvllm_transformers.towers import encode, encode_images, on_device
from bvllm_transformers.weights import load, processor_in


class TransformersHost:
    """The host of transformers' video models; which, `families` says."""

    api = 3
    overrides: type = Budgeted

    def load(self, folder: Path, *, dtype: torch.dtype) -> Any:
        return load(folder, dtype)

    def processor(self, folder: Path) -> Any:
        return processor_in(folder)

    def config(self, model: Any) -> BalancedTokenizerConfig:
        """Without training: frames by coverage, of each the model's own tokens."""
        check_served(model)
        check_seam(model)
        width = model.get_input_embeddings().embedding_dim
        return BalancedTokenizerConfig(
            num_frames=None, tokens_per_frame=None, vision_width=width, llm_width=width,
            frame_feature="mean", selector="coverage", sampler="none", projection="none",
        )  # fmt: skip

    def tower(self, model: Any) -> nn.Module:
        tower: nn.Module = model.base_model.get_encoder(modality="image")
        return tower

    def frames_per_look(self, model: Any, processor: Any) -> int:
        check_asked(model, processor)
        return frames_per_look(family_of(model), processor)

    def layout(
        self, model: Any, processor: Any, height: int, width: int, groups: int, *, is_image: bool
    ) -> Layout:
        family = family_of(model)
        if is_image:
            return Layout(height, width, patches_per_frame=1, is_image=True)

        def native() -> int:
            return tokens_of_one(model, processor, height, width)

        config = tokenizer_of(model).config
        return lay_out(family, config, processor, height, width, groups, native)

    def pixels(
        self,
        processor: Any,
        frames: npt.NDArray[np.uint8],
        *,
        is_image: bool = False,
        layout: Layout | None = None,
    ) -> Tensor | ImagePixels:
        check_shows_videos(processor)
        if is_image:
            return image_pixels(processor, frames[0])
        return video_pixels(processor, frames, layout)

    def look(self, model: Any, pixels: Tensor | ImagePixels) -> FrameFeatures:
        family, device = family_of(model), device_of(model.get_input_embeddings())
        if isinstance(pixels, ImagePixels):
            tokens = encode_images(model, on_device(pixels.inputs, device)).tokens[None]
        else:
            inputs = encoder_inputs(family, pixels.to(device))
            made = encode(model, family, inputs, 0, torch.arange(len(pixels))).tokens
            tokens = made[: len(made) - family.tail].unflatten(0, (len(pixels), -1))
        tokenizer = tokenizer_of(model)
        check_sampled(tokenizer, tokens.shape[1])
        feature = tokens[..., : tokenizer.config.llm_width].float().mean(dim=1)
        return FrameFeatures(feature, own_width(tokenizer, tokens))

    def answers(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[str],
        tokens: Sequence[VisualTokens],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        system: str | None = None,
        **generate: Any,
    ) -> Replies:
        """In the chat format of the model's processor."""
        return answers(model, processor, questions, tokens, history, system, generate)

    def image_embeds(self, model: Any, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """See `bvllm_adapters.hosts.Host`."""
        check_takes_image_embeds(model)
        tail = tail_of(model, family_of(model)) if tokens.beside else tokens.tokens[:0]
        return tokens.tokens, tail.to(tokens.tokens)

    def training(self, processor: Any, model: Any) -> Any:
        from bvllm_transformers.training import TransformersTraining  # seldom used

        return TransformersTraining(processor, model)

    def tiny(self, folder: Path, name: str) -> None:
        """Of a few families; see `bvllm_transformers.tiny`."""
        from bvllm_transformers.tiny import write_tiny_checkpoint

        write_tiny_checkpoint(folder, name)

    def call(
        self,
        model: Any,
        processor: Any,
        videos: Sequence[Video | None],
        questions: Sequence[str],
        *,
        answers: Sequence[str] | None = None,
        padding_side: str = "left",
        to: str = "forward",
    ) -> dict[str, Any]:
        """As the models' pages tell users to make it."""
        return own_call(processor, videos, questions, answers, padding_side)


HOST = TransformersHost()
