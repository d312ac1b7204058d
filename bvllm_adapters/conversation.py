"""Asking a model about a video; each answer comes with its trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.hosts import TOKENIZER, base_model, host_of
from bvllm_adapters.trace import Trace, ledger, stage
from bvllm_adapters.video import Video, read_video


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it saw."""

    text: str
    trace: Trace

    def __str__(self) -> str:
        return self.text


@torch.inference_mode()
def ask(
    model: nn.Module,
    video: Any,
    question: str,
    *,
    processor: Any = None,
    max_tokens: int | None = None,
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    max_new_tokens: int = 128,
    **generate: Any,
) -> Answer:
    """Ask a wrapped or native model about a video or image.

    Args:
        video: whatever `read_video` reads, or a `Video` that it has read.
        question: may be empty.
        processor: tokenizer and image processor of the host; None: those beside the checkpoint
            that the model was loaded from.
        max_tokens: budget in visual tokens, in place of the tokenizer's own.
        fps, start, end, max_frames, progress: see `read_video`.
        max_new_tokens: length of the answer at most; this and `generate` go to the model's
            generate().

    Raises:
        VideoError: for a video that cannot be read. ValueError: for a model without tokenizer.
    """
    base = base_model(model)
    tokenizer = getattr(base, TOKENIZER, None)
    if not isinstance(tokenizer, BalancedTokenizer):
        raise ValueError(
            f"model: got a {type(base).__name__} without BalancedTokenizer; wrap it first"
        )
    host = host_of(base)
    if processor is None:
        processor = processor_of(base)

    with ledger() as seconds:
        if not isinstance(video, Video):
            with stage("decode"):
                video = read_video(
                    video, fps=fps, start=start, end=end, max_frames=max_frames, progress=progress
                )
        with stage("encode"):
            features = host.encode(base, processor, video)
        tokens = tokenizer([features], [question], max_tokens=max_tokens)[0]
        with stage("answer"):
            text = host.answer(
                base, processor, question, tokens, max_new_tokens=max_new_tokens, **generate
            )
    budget = tokenizer.config.max_tokens if max_tokens is None else max_tokens
    return Answer(text, Trace.of(tokens, max_tokens=budget, seconds=seconds))


def processor_of(model: nn.Module) -> Any:
    """Tokenizer and image processor that lie beside the checkpoint a model was loaded from."""
    base = base_model(model)
    folder = Path(str(getattr(base, "name_or_path", "") or ""))
    if not (folder / "config.json").is_file():
        raise ValueError(
            "processor: got None, and the model was not loaded from a folder that still holds "
            "one; wanted processor="
        )
    return host_of(base).processor(folder)
