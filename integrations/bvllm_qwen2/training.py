"""How these models are trained: Qwen2's chat format, and what forward() takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.training.host import Example
from bvllm_adapters.video.frames import Video
from bvllm_qwen2.processing import BvllmQwen2Processor


class BvllmQwen2Training:
    """See `bvllm_adapters.training.host.HostTraining`."""

    max_media = None

    def __init__(self, processor: BvllmQwen2Processor) -> None:
        self.processor = processor
        self.pad_token_id: int = processor.tokenizer.pad_token_id
        self.placeholders = (processor.image_token_id, processor.video_token_id)
        self.end_ids = {*processor.tokenizer.all_special_ids} - {processor.tokenizer.unk_token_id}

    def prompt(self, turns: Sequence[str], *, system: str | None = None) -> str:
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages += [
            {"role": "assistant" if i % 2 else "user", "content": turn}
            for i, turn in enumerate(turns)
        ]
        text: str = self.processor.apply_chat_template(
            messages, add_generation_prompt=len(turns) % 2 == 1
        )
        return text

    def ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(prompt)["input_ids"]
        return ids

    def pixels(self, video: Video) -> Tensor:
        return self.processor.pixels(video.frames)

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The question is said by `asking`, and read by the model's own tokenizer."""
        visuals = [visual for example in examples for visual in example.visuals]
        if not visuals:
            return {}
        return {
            "pixel_values": torch.cat([visual.pixels for visual in visuals]),
            "frame_counts": torch.tensor([len(visual.pixels) for visual in visuals]),
            "seconds": torch.cat([visual.seconds.float() for visual in visuals]),
        }
