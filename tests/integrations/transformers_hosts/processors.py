"""Four real processors of transformers made offline, each beside a tiny model that fits it."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from tiny import family

from bvllm_transformers.tiny import TINY, tiny_model

_CLASSES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
}
PROCESSORS = tuple(_CLASSES)


def processor(name: str) -> Any:
    """The processor of this family, with a tokenizer of bytes; skips as `family` does."""
    family(name)
    return TINY[_CLASSES[name]].processor()


def model(name: str, seed: int = 0) -> Any:
    """A tiny model that fits it, with loud weights; one's own to change."""
    return copy.deepcopy(_model(name, seed))


def write(name: str, folder: Path, seed: int = 0) -> Path:
    """Both as files, as a checkpoint comes: for AutoProcessor and `from_pretrained`."""
    processor(name).save_pretrained(folder)
    _model(name, seed).save_pretrained(folder)
    return folder


def messages(frames: Any, question: str = "What happens?") -> list[dict[str, Any]]:
    """A user's turn about a clip: its frames (T, H, W, 3) of bytes, or a list of them."""
    content = [{"type": "video", "video": frames}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def read(path: Path, step: int = 1) -> tuple[Any, dict[str, Any]]:
    """Every `step`th frame of a clip, and the settings that tell a processor their times.

    Processors themselves read files by torchcodec alone, which is not always there.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [one.to_ndarray(format="rgb24") for one in container.decode(stream)]
        fps = float(stream.average_rate)
    height, width = frames[0].shape[:2]
    metadata = {
        "total_num_frames": len(frames),
        "fps": fps,
        "width": width,
        "height": height,
        "duration": len(frames) / fps,
        "frames_indices": list(range(0, len(frames), step)),
    }
    settings = {"do_sample_frames": False, "video_metadata": [[metadata]]}
    return np.stack(frames[::step]), settings


def prepare(processor: Any, messages: Any, **settings: Any) -> Any:
    """What `model.generate(**inputs)` takes, as the models' pages tell a user to make it.

    Args:
        settings: of the processor, as `read` gives them.
    """
    return processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=settings,
    )


def answer(model: Any, processor: Any, messages: Any, settings: Any = None, **generate: Any) -> str:
    """The user's own snippet, to the words of the answer: greedy, of 4 tokens if not said."""
    inputs = prepare(processor, messages, **(settings or {}))
    ids = model.generate(**inputs, **{"max_new_tokens": 4, "do_sample": False, **generate})
    new = ids[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0]


@cache
def _model(name: str, seed: int) -> Any:
    return tiny_model(family(name).class_name, processor(name).tokenizer, seed)
