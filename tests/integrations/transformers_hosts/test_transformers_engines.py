"""Chosen frames and visual tokens for other engines, by transformers' own processors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import numbers, write_video
from processors import PROCESSORS, model, prepare, processor
from vllm_stub import embeds_of, parts_of, serving, video_of

import bvllm_adapters as bvllm
from bvllm_adapters.engines.image_embeds import ImageEmbeds, image_embeds
from bvllm_adapters.engines.prompt_embeds import prompt_embeds
from bvllm_adapters.engines.writers import (
    messages,
    processor_inputs,
    vllm_request,
    vllm_video,
)
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.video.frames import Video
from bvllm_adapters.weights.lora_layers import add_lora

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


@pytest.mark.parametrize("way", WAYS)
def test_from_a_file_to_the_times_that_are_read(way: str, tmp_path: Path) -> None:
    """Of uneven frames in a part of a video, of which each shows its own number."""
    shown = np.cumsum([0.0, *np.tile([0.033, 0.5, 0.1, 1.7, 0.033], 6)])
    file = write_video(tmp_path / "uneven.mp4", frames=len(shown), times=shown.tolist())
    how: dict[str, Any] = {"fps": None, "start": 4.0, "end": 12.0, "num_frames": 7}
    chosen = bvllm.select_frames(file, selector="uniform", **how)
    true = shown[numbers(chosen.frames)]
    assert true.min() > 3 and true.max() < 12 and np.allclose(chosen.seconds, true, atol=0.002)
    _, prompt = read("qwen3_vl", *WAYS[way](chosen, "qwen3_vl"))
    assert np.allclose(times_in(prompt), true, atol=0.052) and len(times_in(prompt)) == 7


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


# Visual tokens as images.

AS_IMAGES = {  # how our own prompt has a video -> what a server needs to be told for the same one
    "llava_onevision": {"each_frame": False},
    "internvl": {"text": "Frame{number}: "},
}
PLACES = {  # what a server puts for an image of so many tokens where the template has one
    "llava_onevision": ("<image>", "", ""),
    "internvl": ("<IMG_CONTEXT>", "<img>", "</img>"),
}


def opened(name: str, budget: int = 9, frames: int = 7) -> Any:
    shown = np.random.default_rng(0).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)
    wrapped = bvllm.wrap(model(name), max_tokens=budget)
    return bvllm.open_video(wrapped, shown, processor=processor(name))


def served(name: str, request: dict[str, Any], video: Any) -> list[int]:
    """What a server of the model says: its own template, K places for an image of K tokens."""
    own, base = video.processor, video.model
    width = base.get_input_embeddings().embedding_dim
    images = [embeds_of(part["image_embeds"], width) for part in parts_of(request, "image_embeds")]
    content = [
        part if part["type"] == "text" else {"type": "image"}
        for part in request["messages"][0]["content"]
    ]
    prompt = own.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    place, begin, end = PLACES[name]
    pieces = prompt.split(place)
    assert len(pieces) == len(images) + 1
    text = pieces[0]
    for image, piece in zip(images, pieces[1:], strict=True):
        text += begin + place * len(image) + end + piece
    ids = own.tokenizer(text, return_tensors="pt")["input_ids"]
    embeds = base.get_input_embeddings()(ids)
    embeds[ids == own.tokenizer.convert_tokens_to_ids(place)] = torch.cat(images)
    new = base.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False)
    answer: list[int] = new[0].tolist()
    return answer


@pytest.mark.parametrize("frames", [7, 1])
@pytest.mark.parametrize("budget", [1, 9, 1000])
@pytest.mark.parametrize("name", AS_IMAGES)
def test_a_server_that_is_given_tokens_answers_as_we_do(
    name: str, budget: int, frames: int
) -> None:
    video = opened(name, budget, frames)
    made = image_embeds(video, QUESTION, **AS_IMAGES[name])
    assert sum(map(len, made.images)) == len(made.tokens) + made.tokens.beside <= budget
    generated = video.ask(
        QUESTION, max_new_tokens=6, do_sample=False, return_dict_in_generate=True
    ).generated
    with serving(lambda path, request: served(name, request, video)) as post:
        said = post("/v1/chat/completions", {"model": "any", "messages": made.messages()})
    assert said == generated.sequences[0].tolist()


def test_each_frames_tokens_stand_behind_its_time() -> None:
    video = opened("llava_onevision")
    made = image_embeds(video, QUESTION, max_tokens=7)
    frames = made.tokens.frame.unique().tolist()
    assert made.texts == [f"{frame}.0 seconds:" for frame in frames]
    assert torch.equal(torch.cat(list(made.images)), made.tokens.tokens.cpu())
    assert all(len(image) == (made.tokens.frame == f).sum()
               for f, image in zip(frames, made.images, strict=True))  # fmt: skip
    assert made.multi_modal_data()["image"][0] is made.images[0]
    kinds = [part["type"] for part in made.messages()[0]["content"]]
    assert kinds == ["text", "image_embeds"] * len(frames) + ["text"]
    assert image_embeds(opened("llava_onevision", frames=1), "").texts == ["0.0 seconds:"]
    one = np.zeros((16, 16, 3), np.uint8)
    still = bvllm.open_video(video.model, one, processor=video.processor)
    assert image_embeds(still, "").texts == [""]
    assert isinstance(made, ImageEmbeds)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_models_whose_positions_would_be_wrong_are_refused_by_name(name: str) -> None:
    video = opened(name)
    words = f"model: got a {type(video.model).__name__}, whose positions lie in a grid"
    with pytest.raises(HostError, match=words):
        image_embeds(video, QUESTION)
    with pytest.raises(
        HostError, match=f"model: got a {type(video.model).__name__}, whose prompts"
    ):
        prompt_embeds(video, QUESTION)


def test_a_lora_that_the_server_has_not_is_refused(tiny_qwen2: Any) -> None:
    video = opened("internvl")
    linears = [n for n, m in video.model.named_modules() if n.endswith("layers.0.self_attn.q_proj")]
    add_lora(video.model, [name for name in linears if "language_model" in name], rank=1, alpha=1.0)
    with pytest.raises(ValueError, match="model: got one with an adapter's LoRA"):
        image_embeds(video, QUESTION)
    own, words = tiny_qwen2
    frames = np.zeros((2, 48, 48, 3), np.uint8)
    with pytest.raises(HostError, match="which engines do not serve, wanted prompt_embeds"):
        image_embeds(bvllm.open_video(own, frames, processor=words), QUESTION)
