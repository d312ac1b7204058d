"""How bvllm_adapters handles these models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.features import FrameFeatures, VisualTokens
from bvllm_adapters.hosts.generation import Replies, settled
from bvllm_adapters.hosts.tiny_tokenizer import tiny_tokenizer
from bvllm_adapters.hosts.turns import messages, special_tokens, turns_of
from bvllm_adapters.question import pad, without
from bvllm_adapters.video.frames import Video
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.image_processors import check_image_processor
from bvllm_adapters.weights.json_file import blamed, read_json
from bvllm_qwen2.chat import VIDEO_TOKEN
from bvllm_qwen2.configuration import BvllmQwen2Config
from bvllm_qwen2.modeling import BvllmQwen2ForConditionalGeneration
from bvllm_qwen2.processing import BvllmQwen2Processor, image_processor_for

DEMO = Path(__file__).parent / "demo"

if TYPE_CHECKING:
    from bvllm_qwen2.training import BvllmQwen2Training


class Unchanged:
    """Modifications: none; the model has a tokenizer of its own, which wrap() replaces."""


class BvllmQwen2Host:
    """The host of `BvllmQwen2ForConditionalGeneration`; see `bvllm_adapters.hosts.Host`."""

    api = 3
    overrides: type = Unchanged
    published: Mapping[str, Mapping[str, Any]] = {BvllmQwen2ForConditionalGeneration.__name__: {}}

    def load(
        self, folder: Path, *, dtype: torch.dtype, **options: Any
    ) -> BvllmQwen2ForConditionalGeneration:
        """A folder that save_pretrained filled."""
        from bvllm_qwen2.weights import load

        return load(folder, dtype=dtype, **options)

    def demo(self) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
        """The small trained model that ships; see its card in demo/README.md."""
        return self.load(DEMO, dtype=torch.float32), self.processor(DEMO)

    def tiny(self, folder: Path, name: str) -> None:
        """See `bvllm_adapters.hosts.Host`."""
        from bvllm_qwen2.tiny import tiny_model

        model, processor = tiny_model()
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    def call(
        self,
        model: BvllmQwen2ForConditionalGeneration,
        processor: BvllmQwen2Processor,
        videos: Sequence[Video | None],
        questions: Sequence[str],
        *,
        answers: Sequence[str] | None = None,
        padding_side: str = "left",
        to: str = "forward",
    ) -> dict[str, Any]:
        """What the processor makes; see `bvllm_adapters.hosts.Host`."""
        texts = []
        for video, question in zip(videos, questions, strict=True):
            turn = question if video is None else f"{VIDEO_TOKEN}\n{question}"
            texts.append(
                processor.apply_chat_template(messages([turn], None), add_generation_prompt=True)
            )
        if answers is not None:
            texts = [text + answer for text, answer in zip(texts, answers, strict=True)]
        shown = [video for video in videos if video is not None]
        return dict(processor(texts, videos=shown or None, padding_side=padding_side))

    def processor(self, folder: Path) -> BvllmQwen2Processor:
        file = folder / "processor_config.json"
        if not file.is_file():  # as the image processor alone was once saved
            file = folder / "preprocessor_config.json"
        values = read_json(file)
        values = values.get("image_processor", values)
        with blamed(f"{folder}: processor"):
            processor: BvllmQwen2Processor = BvllmQwen2Processor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            processor.tokenizer("What?")  # settings that it was made with, but cannot work by
        check_image_processor(file, values, processor.image_processor)
        return processor

    def parts(self, name: str, fields: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """The class, its config, and a processor whose words mean nothing to it; without fields
        they are of the paper's sizes."""
        config = BvllmQwen2Config(**fields)
        images = image_processor_for(config.vision_config)
        processor = BvllmQwen2Processor(images, tiny_tokenizer())
        config.image_token_id = processor.image_token_id
        config.video_token_id = processor.video_token_id
        return BvllmQwen2ForConditionalGeneration, config, processor

    def training(self, processor: BvllmQwen2Processor) -> BvllmQwen2Training:
        """See `bvllm_adapters.training.host.HostTraining`."""
        from bvllm_qwen2.training import BvllmQwen2Training

        return BvllmQwen2Training(processor)

    def config(self, model: BvllmQwen2ForConditionalGeneration) -> BalancedTokenizerConfig:
        return model.config.balanced_tokenizer_config

    def tower(self, model: BvllmQwen2ForConditionalGeneration) -> nn.Module:
        return model.vision_tower

    def pixels(
        self,
        processor: BvllmQwen2Processor,
        frames: npt.NDArray[np.uint8],
        *,
        is_image: bool = False,
    ) -> Tensor:
        return processor.pixels(frames)

    def look(self, model: BvllmQwen2ForConditionalGeneration, pixels: Tensor) -> FrameFeatures:
        return FrameFeatures(*model.look(pixels))

    def answers(
        self,
        model: BvllmQwen2ForConditionalGeneration,
        processor: BvllmQwen2Processor,
        questions: Sequence[str],
        tokens: Sequence[VisualTokens],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        system: str | None = None,
        **generate: Any,
    ) -> Replies:
        ids = self.prompt_ids(processor, questions, history=history, system=system)
        padded, mask = (part.to(device_of(model.get_input_embeddings())) for part in pad(ids))
        prompts = model.splice(padded, tokens, attention_mask=mask, padding_side="left")
        settings = settled(
            model.generation_config, generate,
            prompt_length=padded.shape[1], tokenizer=processor.tokenizer,
        )  # fmt: skip
        new = model.continue_prompts(prompts, **settings)
        return Replies.of(new, partial(processor.tokenizer.batch_decode, skip_special_tokens=True))

    def prompt_ids(
        self,
        processor: BvllmQwen2Processor,
        questions: Sequence[str],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        system: str | None = None,
    ) -> list[Tensor]:
        """See `bvllm_adapters.hosts.Host`."""
        special = special_tokens(processor.tokenizer)
        ids = []
        for i, question in enumerate(questions):
            turns = turns_of(question, None if history is None else history[i], special)
            turns[0] = f"{VIDEO_TOKEN}\n{turns[0]}"
            prompt = processor.apply_chat_template(
                messages(turns, None if system is None else without(system, special)),
                add_generation_prompt=True,
            )
            ids.append(processor.tokenizer(prompt, return_tensors="pt")["input_ids"][0])
        return ids

    def placeholders(self, model: BvllmQwen2ForConditionalGeneration) -> tuple[int, int]:
        return model.placeholders

    def language_model(self, model: BvllmQwen2ForConditionalGeneration) -> nn.Module:
        language_model: nn.Module = model.language_model
        return language_model

    def save_tokenizer(self, processor: BvllmQwen2Processor, folder: Path) -> None:
        processor.tokenizer.save_pretrained(folder)
