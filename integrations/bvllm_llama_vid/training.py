"""How LLaMA-VID is trained: the format of vicuna_v1, and what forward() takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from bvllm_adapters.training.host import Example
from bvllm_adapters.video.frames import Video
from bvllm_llama_vid.configuration import IMAGE_TOKEN_ID
from bvllm_llama_vid.preprocessing import LlamaVidProcessor
from bvllm_llama_vid.prompt_tokenizer import IMAGE_TOKEN


class LlamaVidTraining:
    """See `bvllm_adapters.training.host.HostTraining`."""

    placeholders = (IMAGE_TOKEN_ID,)
    max_media = 1

    def __init__(self, processor: LlamaVidProcessor) -> None:
        self.processor = processor
        self.end_ids = (processor.tokenizer.eos_token_id,)
        self.pad_token_id = processor.tokenizer.eos_token_id  # masked, so that any word will do

    def prompt(self, turns: Sequence[str], *, system: str | None = None) -> str:
        """As upstream trains: prompts about text alone have no placeholder."""
        processor = self.processor if system is None else replace(self.processor, system=system)
        return processor.conversation([turn.replace("<video>", IMAGE_TOKEN) for turn in turns])

    def ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(prompt).tolist()
        return ids

    def pixels(self, video: Video) -> Tensor:
        return self.processor.pixels(video.frames, pad=video.is_image and self.processor.pad_images)

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        images = [visual.pixels for example in examples for visual in example.visuals]
        return {"images": images} if images else {}
