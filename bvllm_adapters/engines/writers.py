"""Chosen frames as five kinds of engine take them, with the times at which they are shown.

| to | by | what the model reads of times |
|---|---|---|
| any server or hosted API of OpenAI's kind: vLLM, SGLang | `messages` | a text before each image |
| Gemini's own API | `gemini_contents` | likewise |
| a vLLM server of one's own | `vllm_request` | what it reads of a video's |
| vLLM without a server | `vllm_video` | likewise |
| transformers' processors | `processor_inputs` | likewise |

The last three send a video, so the model reads it as one. They were written for vLLM 0.33 and
transformers 5; what vLLM makes of them is tested against what its source does, not by running it.
"""

from __future__ import annotations

import base64
from typing import Any

from bvllm_adapters.engines.sent_frames import sent_frames
from bvllm_adapters.selectors.export import MESSAGE_SIZE, jpeg, times
from bvllm_adapters.selectors.export import messages as messages
from bvllm_adapters.video.frames import Frames, Video

Message = dict[str, Any]


def gemini_contents(
    chosen: Video, question: str, *, size: int | None = MESSAGE_SIZE
) -> list[Message]:
    """`contents` of Gemini's generateContent: as `messages`, in its names. As a video file it
    would sample the frames anew, once a second.

    Args:
        question: left out if empty. size: longest edge in pixels at most; None: as they are.
    """
    parts: list[Message] = []
    for time, frame in zip(times(chosen.seconds.tolist()), chosen.frames, strict=True):
        if not chosen.is_image:
            parts.append({"text": f"{time} seconds:"})
        data = {"mime_type": "image/jpeg", "data": _base64(frame, size)}
        parts.append({"inline_data": data})
    if question.strip():
        parts.append({"text": question})
    return [{"role": "user", "parts": parts}]


def vllm_request(
    chosen: Video, question: str, *, model: str, size: int | None = MESSAGE_SIZE
) -> dict[str, Any]:
    """`messages` and `media_io_kwargs` of a request to a vLLM server's chat completions; by
    OpenAI's client, the latter in `extra_body`.

    The server must run with `--trust-request-mm-kwargs`: without it the request is refused, and
    without the request's metadata it would take one frame a second for granted.

    Args:
        model: model_type of what is served, see `sent_frames`. question: left out if empty.
        size: longest edge in pixels at most; None: as they are.

    Raises:
        ValueError: see `sent_frames`.
    """
    sent = sent_frames(chosen, model)
    once = [_base64(frame, size) for frame in sent.frames]
    frames = ",".join(data for data in once for _ in range(sent.each))
    # The server's own limit, or 32, would drop frames in silence; beside an fps it forgets its own.
    beside = {"num_frames": len(once) * sent.each, "do_sample_frames": False}
    video = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}
    return {
        "messages": [{"role": "user", "content": [video, *_asked(question)]}],
        "media_io_kwargs": {"video": {**sent.metadata, **beside}},
    }


def vllm_video(
    chosen: Video, *, model: str, size: int | None = None
) -> tuple[Frames, dict[str, Any]]:
    """(frames, metadata) for `multi_modal_data={"video": ...}` of vLLM's LLM.generate().

    Args: see `sent_frames`.
    """
    sent = sent_frames(chosen, model, size=size)
    return sent.repeated, {**sent.metadata, "video_backend": "bvllm", "do_sample_frames": False}


def processor_inputs(
    chosen: Video, question: str, *, model: str, size: int | None = None
) -> tuple[list[Message], dict[str, Any]]:
    """Messages and `processor_kwargs` for apply_chat_template() of transformers' own processors:

        messages, settings = processor_inputs(chosen, question, model=model.config.model_type)
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt", processor_kwargs=settings,
        )

    Args:
        question: left out if empty. model, size: see `sent_frames`.
    """
    sent = sent_frames(chosen, model, size=size)
    height, width = sent.frames.shape[1:3]
    metadata = {**sent.metadata, "height": height, "width": width}
    video = {"type": "video", "video": sent.repeated}
    settings = {"do_sample_frames": False, "video_metadata": [[metadata]]}
    return [{"role": "user", "content": [video, *_asked(question)]}], settings


def _asked(question: str) -> list[Message]:
    return [{"type": "text", "text": question}] if question.strip() else []


def _base64(frame: Frames, size: int | None) -> str:
    return base64.b64encode(jpeg(frame, size)).decode("ascii")
