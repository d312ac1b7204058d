"""Calls of a model's own forward() and generate() as its users make them: by its processor, of
frames at their true times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bvllm_adapters.video.frames import Video
from bvllm_transformers.conversation_prompts import times_of
from bvllm_transformers.layout import Layout


def own_call(
    processor: Any,
    videos: Sequence[Video | None],
    questions: Sequence[str],
    answers: Sequence[str] | None,
    padding_side: str,
) -> dict[str, Any]:
    """A batch of prompts; see `bvllm_adapters.hosts.Host`."""
    texts = [
        _prompt(processor, video, question)
        for video, question in zip(videos, questions, strict=True)
    ]
    if answers is not None:
        texts = [text + answer for text, answer in zip(texts, answers, strict=True)]
    shown = [video for video in videos if video is not None]
    given: dict[str, Any] = {}
    if shown:
        given["videos"] = [torch.from_numpy(video.frames).movedim(-1, 1) for video in shown]
        given["videos_kwargs"] = {
            "do_sample_frames": False,
            "video_metadata": [_times(video) for video in shown],
            "return_metadata": True,
        }
    made = processor(
        text=texts, padding=True, padding_side=padding_side, return_tensors="pt", **given
    )
    return dict(made)


def _prompt(processor: Any, video: Video | None, question: str) -> str:
    content = [] if video is None else [{"type": "video"}]
    turn = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
    text: str = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    return text


def _times(video: Video) -> dict[str, Any]:
    height, width = video.frames.shape[1:3]
    return times_of(torch.from_numpy(video.seconds), 1, Layout(height, width, 0))
