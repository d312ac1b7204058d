"""How VideoLLaMA2 is trained: its checkpoint's chat template, and what forward() takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bvllm_adapters.training.host import Example
from bvllm_adapters.video.frames import Video
from bvllm_videollama2.inputs import PLACEHOLDERS
from bvllm_videollama2.preprocessing import Videollama2Processor
from bvllm_videollama2.prompts import SYSTEM_TAGS, TAGS

_PLACEHOLDER = dict(TAGS.values())
_TAG = re.compile(f"({'|'.join(_PLACEHOLDER)})")


class Videollama2Training:
    """See `bvllm_adapters.training.host.HostTraining`."""

    placeholders = PLACEHOLDERS
    max_media = None

    def __init__(self, processor: Videollama2Processor) -> None:
        self.processor = processor
        tokenizer = processor.tokenizer
        # Masked wherever it stands, so that any word will do where there is no word for padding.
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = tokenizer.eos_token_id if pad is None else pad
        self.end_ids = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}

    def prompt(self, turns: Sequence[str], *, system: str | None = None) -> str:
        messages = [
            {"role": "assistant" if i % 2 else "user", "content": turn}
            for i, turn in enumerate(turns)
        ]
        own = self.processor.system
        if system is None:
            system = own
        elif own is not None:  # of the families with Llama-2's habits
            system = SYSTEM_TAGS.format(system)
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text: str = self.processor.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=len(turns) % 2 == 1
        )
        return text

    def ids(self, prompt: str) -> list[int]:
        """As the host's inference has it: what stands between tags is split into words alone."""
        ids: list[int] = []
        for piece in _TAG.split(prompt):
            if piece in _PLACEHOLDER:
                ids.append(_PLACEHOLDER[piece])
            elif piece:
                ids += self.processor.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def pixels(self, video: Video) -> Tensor:
        return self.processor.pixels(video.frames)

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        images = [(visual.pixels, visual.kind) for one in examples for visual in one.visuals]
        return {"images": images} if images else {}
