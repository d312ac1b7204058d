"""Chosen frames and visual tokens for other engines, by transformers' own processors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from processors import PROCESSORS, prepare, processor
from vllm_stub import video_of

from bvllm_adapters.engines.writers import (
    messages,
    processor_inputs,
    vllm_request,
    vllm_video,
)
from bvllm_adapters.video.frames import Video

QUESTION = "What happens?"
UNEVEN = [4.0, 57.0, 59.0]


def video(seconds: list[float], duration: float = 60.0) -> Video:
    frames = np.random.default_rng(0).integers(0, 256, (len(seconds), 32, 32, 3), dtype=np.uint8)
    return Video(frames, np.array(seconds), "clip.mp4", False, 60, duration)


def read(name: str, messages: Any, settings: dict[str, Any]) -> Any:
    """What a processor makes of a writer's frames, and the prompt as text beside it."""
    own = processor(name)
    made = prepare(own, messages, **settings)
    return made, own.tokenizer.decode(made["input_ids"][0])


def times_in(prompt: str) -> list[float]:
    return [float(found) for found in re.findall(r"<(\d+\.\d) seconds>", prompt)]


def from_metadata(frames: Any, metadata: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """As vLLM hands its frames and metadata to the model's processor."""
    known = ("total_num_frames", "fps", "duration", "frames_indices")
    kept = {name: metadata[name] for name in known}
    content = [{"type": "video", "video": frames}, {"type": "text", "text": QUESTION}]
    settings = {"do_sample_frames": metadata["do_sample_frames"], "video_metadata": [[kept]]}
    return [{"role": "user", "content": content}], settings


WAYS = {
    "transformers": lambda chosen, model: processor_inputs(chosen, QUESTION, model=model),
    "vLLM offline": lambda chosen, model: from_metadata(*vllm_video(chosen, model=model)),
    "vLLM's server": lambda chosen, model: from_metadata(
        *video_of(vllm_request(chosen, QUESTION, model=model))
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "seconds", [UNEVEN, [0.0], [4.0, 12.0, 57.0, 59.0], [0.04, 0.08, 1.96, 3599.96]], ids=str
)
def test_a_processor_writes_each_frames_own_time(way: str, seconds: list[float]) -> None:
    _, prompt = read("qwen3_vl", *WAYS[way](video(seconds, 3600.0), "qwen3_vl"))
    assert times_in(prompt) == [round(second, 1) for second in seconds]


def test_frames_sent_once_would_have_the_mean_of_two_times() -> None:
    """Why they are sent twice, and why metadata is sent at all."""
    chosen = video(UNEVEN)
    told, settings = processor_inputs(chosen, QUESTION, model="qwen3_vl")
    told[0]["content"][0]["video"] = chosen.frames
    settings["video_metadata"][0][0]["frames_indices"] = [4000, 57000, 59000]
    assert times_in(read("qwen3_vl", told, settings)[1]) == [30.5, 59.0]
    plain = {"do_sample_frames": False}
    assert times_in(read("qwen3_vl", told, plain)[1]) != [30.5, 59.0]


@pytest.mark.parametrize("step", [0.5, 2.0, 12.5])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_of_one_step_gets_the_true_one(way: str, step: float) -> None:
    seconds = [30 + step * i for i in range(6)]
    made, _ = read("qwen2_5_vl", *WAYS[way](video(seconds), "qwen2_5_vl"))
    assert made["video_grid_thw"][0, 0] == 3  # pairs
    assert float(made["second_per_grid_ts"][0]) == pytest.approx(2 * step)


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_frames_that_come_are_those_that_were_sent(name: str) -> None:
    chosen = video([3.0, 6.0, 9.0, 12.0])
    made, prompt = read(name, *processor_inputs(chosen, QUESTION, model=name))
    assert QUESTION in prompt
    pixels = made["pixel_values" if name == "internvl" else "pixel_values_videos"]
    if "video_grid_thw" in made:
        groups = {"qwen3_vl": 4, "qwen2_5_vl": 2}[name]
        assert made["video_grid_thw"][0, 0] == groups
        pixels = pixels.unflatten(0, (groups, -1))
    else:
        assert pixels.flatten(0, -4).shape[0] == 4
    if name == "qwen3_vl":  # each beside its own copy: two (3, 4, 4) halves of a patch are one
        pairs = pixels.unflatten(-1, (3, 2, -1))
        assert torch.equal(pairs[..., 0, :], pairs[..., 1, :])


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_stand_behind_their_times(name: str) -> None:
    """As a server's template has them, for any model."""
    (turn,) = messages(video(UNEVEN), QUESTION)
    content = [part if part["type"] == "text" else {"type": "image"} for part in turn["content"]]
    text = processor(name).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    said = re.findall(r"(\d+\.\d) seconds:", text)
    assert said == ["4.0", "57.0", "59.0"] and text.index("59.0") < text.index(QUESTION)
