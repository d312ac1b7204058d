"""Frame indices, pixels, prompts and ids as upstream's inference makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bvllm_videollama2.configuration import tower_config
from bvllm_videollama2.preprocessing import (
    Videollama2Processor,
    frame_indices,
    image_processor_for,
    pixels,
)
from bvllm_videollama2.prompts import question_in
from bvllm_videollama2.tiny import tiny_model, tiny_tokenizer

# tokenizers says this to the Qwen2 tokenizer of transformers 5.0.
pytestmark = pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0. BPE:DeprecationWarning")

HERE = Path(__file__).parents[1] / "data" / "videollama2"
INDICES = json.loads((HERE / "frame_sample.json").read_text())
PROMPTS = json.loads((HERE / "prompts.json").read_text())
PIXELS = load_file(HERE / "preprocess.safetensors")
FRAMES = PIXELS["frames_uint8"].numpy()
QUESTION = "What is the person in the video doing?"
CASES = {"clip": "mistral_stc_connector", "siglip": "qwen2_stc_connector_v35"}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, Videollama2Processor.from_folder(HERE / CASES[request.param])


@pytest.mark.parametrize("name", INDICES)
def test_frame_indices(name: str) -> None:
    mode, count, number = name.split(":")
    how = {"num_frames": int(number)} if mode == "uniform" else {"fps": float(number)}
    assert frame_indices(int(count), **how) == INDICES[name]  # type: ignore[arg-type]


@pytest.mark.parametrize("aspect_ratio", [None, "pad"])
def test_pixels_are_upstreams_to_the_bit(case: tuple[str, Any], aspect_ratio: Any) -> None:
    """The PIL image processors: a difference of 0. (torchvision's differ by up to 0.015.)"""
    name, processor = case
    for recorded, frames, count in (("image", FRAMES[:1], None), ("video_short3to5", FRAMES, 5)):
        found = pixels(
            frames, processor.image_processor, aspect_ratio=aspect_ratio, num_frames=count
        )
        assert torch.equal(found[..., ::7, ::7], PIXELS[f"{name}.{recorded}.{aspect_ratio}"])
    assert torch.equal(processor.pixels(FRAMES), pixels(FRAMES, processor.image_processor))


@pytest.mark.parametrize("kind", ["video", "image", "text"])
def test_prompts_and_ids(case: tuple[str, Any], kind: Any) -> None:
    name, processor = case
    wanted = PROMPTS[CASES[name]][kind]
    prompt = processor.prompt(QUESTION, kind)
    assert prompt == wanted["prompt"]
    assert processor.ids(prompt, kind).tolist() == wanted["input_ids"]
    assert processor.prompt(f"<video>{QUESTION}<image>", kind) == prompt


@pytest.mark.parametrize("kind", ["video", "text"])
def test_the_question_is_the_first_user_turn_alone(case: tuple[str, Any], kind: Any) -> None:
    _, processor = case
    prompt = processor.prompt(QUESTION, kind)
    history = prompt + " A dance." + prompt.replace("doing", "wearing")
    for text in (prompt, history):
        ids = processor.ids(text, kind)[0]
        assert question_in(ids, processor.tokenizer) == QUESTION


def test_the_question_of_prompts_in_no_known_format() -> None:
    tokenizer = tiny_tokenizer()

    def read(text: str) -> str:
        return question_in(torch.tensor([-201, *tokenizer(text)["input_ids"]]), tokenizer)

    assert read("who is it? <|endoftext|>") == "who is it?"
    assert read("<|im_start|>user\nwho is") == "who is"  # its end was cut off


def test_an_image_processor_made_from_a_towers_sizes_is_the_published_one() -> None:
    for tower, case in CASES.items():
        config: Any = tiny_model(tower=tower, projector="linear").config
        made = image_processor_for(tower_config(config))
        folder = HERE / "towers" / f"{tower}-tiny-patch14-56"
        read = image_processor_for(tower_config(config), folder)
        assert torch.equal(pixels(FRAMES, made), pixels(FRAMES, read)), case


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0, "num_frames": 4}, "count: got 0"),
        ({"count": 9}, "num_frames, fps: got None and None, wanted one of the two"),
        ({"count": 9, "num_frames": 4, "fps": 2}, "num_frames, fps: got 4 and 2, wanted one"),
        ({"count": 9, "num_frames": 0}, "num_frames: got 0"),
        ({"count": 9, "fps": 0.5}, "fps: got 0.5, wanted 1 or more"),
    ],
)
def test_frames_that_cannot_be_chosen(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame_indices(**arguments)


def test_pixels_that_cannot_be_made(case: tuple[str, Any]) -> None:
    with pytest.raises(ValueError, match="frames: got none, wanted at least one"):
        pixels([], case[1].image_processor)
    with pytest.raises(ValueError, match="aspect_ratio: got 'anyres', wanted 'pad' or None"):
        pixels(FRAMES, case[1].image_processor, aspect_ratio="anyres")  # type: ignore[arg-type]
