"""What the tests of wrapped calls share: a prompt by a real processor, and a wrapped model."""

from __future__ import annotations

from typing import Any

import numpy as np
import processors
import torch
from torch import Tensor

import bvllm_adapters as bvllm

HOST = "bvllm_transformers:HOST"
FRAMES = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
PLENTY = 10**6


def settings(frames: Any = FRAMES, fps: float = 2.0) -> dict[str, Any]:
    """Of a processor: these frames, all of them, at their times."""
    count = len(frames)
    metadata = {
        "total_num_frames": count,
        "fps": fps,
        "width": frames[0].shape[1],
        "height": frames[0].shape[0],
        "duration": count / fps,
        "frames_indices": list(range(count)),
    }
    return {"do_sample_frames": False, "video_metadata": [[metadata]]}


def prompt(name: str, question: str = "What happens?", frames: Any = FRAMES) -> dict[str, Any]:
    """What `model.generate(**inputs)` takes, of one user's turn."""
    return prompt_of(name, processors.messages(frames, question), frames)


def prompt_of(name: str, messages: Any, frames: Any = FRAMES) -> dict[str, Any]:
    own = settings(frames) if frames is not None else {}
    return dict(processors.prepare(processors.processor(name), messages, **own))


def wrapped(name: str, **how: Any) -> Any:
    """A tiny model under a budget, one's own to change."""
    return bvllm.wrap(processors.model(name), host=HOST, **how)


def greedy(model: Any, inputs: dict[str, Any], **how: Any) -> Any:
    return model.generate(**inputs, **{"max_new_tokens": 5, "do_sample": False, **how})


def batch(prompts: list[dict[str, Any]], side: str) -> dict[str, Any]:
    """Prompts of one question length apart, as a processor with padding=True makes a batch."""
    longest = max(one["input_ids"].shape[1] for one in prompts)
    out: dict[str, Any] = {}
    for name, first in prompts[0].items():
        values = [one[name] for one in prompts]
        if first.shape == prompts[0]["input_ids"].shape:
            fill = -100 if name == "labels" else 0
            rows = []
            for value in values:
                more = value.new_full((1, longest - value.shape[1]), fill)
                rows.append(torch.cat([more, value] if side == "left" else [value, more], dim=1))
            values = rows
        out[name] = torch.cat(values)
    return out


def seen_by_decoder(model: Any) -> list[dict[str, Any]]:
    """What the language model is given from here on."""
    seen: list[dict[str, Any]] = []
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    return seen


def lengths(seen: list[dict[str, Any]]) -> list[int]:
    return [each["inputs_embeds"].shape[1] for each in seen]


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
