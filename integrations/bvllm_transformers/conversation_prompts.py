"""The prompt of a conversation about one video or image, in the model's own chat format.

Axes: T groups of the video (see `splits`), P tokens of a group, L ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from bvllm_adapters.hosts.turns import special_tokens, turns_of
from bvllm_adapters.question import without
from bvllm_transformers.layout import ImagePixels, Layout, Pictures, every_frame, ghosts


def prompt_inputs(
    processor: Any,
    layout: Layout,
    seconds: Tensor,
    question: str,
    *,
    frames_per_look: int = 1,
    history: Sequence[tuple[str, str]] = (),
    system: str | None = None,
) -> dict[str, Any]:
    """The arguments that the processor makes of a conversation, pixels without memory among them.

    Args:
        seconds: (T,) times of the groups that are shown, in order.
        history: earlier questions with their answers; the video stands in the first turn.

    Raises:
        ValueError: a processor without chat template.
    """
    kind = "image" if layout.is_image else "video"
    words = special_tokens(processor.tokenizer) | tokens_of_visuals(processor)
    turns = turns_of(question, history, words)
    messages = [] if system is None else [_message("system", without(system, words))]
    for i, turn in enumerate(turns):
        messages.append(_message(("user", "assistant")[i % 2], turn, None if i else kind))
    text = rendered(processor, messages)
    if layout.is_image:
        return with_visuals(processor, text, images=[blank(layout)])
    shown = [(layout, seconds)]
    return with_visuals(processor, text, videos=shown, frames_per_look=frames_per_look)


def with_visuals(
    processor: Any,
    text: str,
    *,
    videos: Sequence[tuple[Layout, Tensor]] = (),
    images: Sequence[Pictures] = (),
    frames_per_look: int = 1,
) -> dict[str, Any]:
    """The arguments that the processor makes of a prompt's text; a video's pixels are without
    memory.

    Args:
        videos: of each its layout and the (T,) times of its groups.
        images: each (H, W, 3) uint8 RGB; `blank` where only its size matters.
    """
    given: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
    if images:
        given["images"] = list(images)
    if videos:
        frames = [
            ghosts(len(seconds) * frames_per_look, layout.height, layout.width)
            for layout, seconds in videos
        ]
        video: dict[str, Any] = {
            **every_frame(processor.video_processor),
            "video_metadata": [times_of(s, frames_per_look, layout) for layout, s in videos],
            "return_metadata": True,  # else some processors do not find the times
            "device": frames[0].device,
        }
        if all(layout.scaled for layout, _ in videos):
            video["do_resize"] = False
        given |= {"videos": frames, "videos_kwargs": video}
    return dict(processor(**given))


def blank(layout: Layout) -> Pictures:
    """A picture of an image's size, for a prompt whose pixels are of no use."""
    return np.zeros((layout.height, layout.width, 3), np.uint8)


def image_pixels(processor: Any, picture: Pictures) -> ImagePixels:
    """(H, W, 3) uint8 RGB, as the processor makes it for a prompt."""
    message = _message("user", "", "image")
    made = with_visuals(processor, rendered(processor, [message]), images=[picture])
    rows = made["input_ids"].shape
    of_prompt = [name for name, value in made.items() if getattr(value, "shape", None) == rows]
    return ImagePixels({name: made[name] for name in made if name not in of_prompt})


def rendered(processor: Any, messages: Sequence[Any]) -> str:
    """A conversation as the text that the model reads, up to where its answer begins.

    Raises:
        ValueError: a processor without chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            "processor: got one without chat_template, wanted that of a chat model: it says how "
            "a question becomes a prompt"
        )
    text: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _message(role: str, text: str, visual: str | None = None) -> dict[str, Any]:
    content = [] if visual is None else [{"type": visual}]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def tokens_of_visuals(processor: Any) -> set[str]:
    """What a prompt's visual inputs are written as."""
    names = ("image_token", "video_token", "start_image_token", "end_image_token")
    found = (getattr(processor, name, None) for name in names)
    return {str(token) for token in found if token}


def times_of(seconds: Tensor, frames_per_look: int, layout: Layout) -> dict[str, Any]:
    """What a processor is told of the frames' times: as if the video had one for each millisecond,
    and these were chosen of them. Both frames of a group have its time."""
    milliseconds = (seconds * 1000).round().long()
    last = int(milliseconds[-1]) + 1
    return {
        "total_num_frames": last,
        "fps": 1000,
        "duration": last / 1000,
        "width": layout.width,
        "height": layout.height,
        "frames_indices": milliseconds.repeat_interleave(frames_per_look).tolist(),
    }
