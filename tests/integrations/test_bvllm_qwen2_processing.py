"""The processor: placeholders, questions, chat format, pixels, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPVisionConfig, SiglipVisionConfig

from bvllm_adapters import Video
from bvllm_adapters.question import QuestionTokenizer
from bvllm_qwen2 import BvllmQwen2Processor, EvaVisionConfig
from bvllm_qwen2.chat import question_of
from bvllm_qwen2.processing import image_processor_for
from bvllm_qwen2.tiny import tiny_tokenizer

CHAT = "<|im_start|>user\n{}<|im_end|>\n"


@pytest.fixture
def processor(tiny_qwen2_session: Any) -> Any:
    return tiny_qwen2_session[1]


def ids(question: str) -> list[int]:
    return QuestionTokenizer()(question).tolist()


def asked(inputs: Any) -> list[list[int]]:
    """The questions of a batch without padding."""
    return [
        row[mask.bool()].tolist()
        for row, mask in zip(inputs["question_ids"], inputs["question_mask"], strict=True)
    ]


def test_the_batch_holds_what_the_model_takes(processor: Any, noise: Any) -> None:
    inputs = processor(
        text=[CHAT.format("<video>what?"), CHAT.format("which <image> is <video> older?")],
        videos=[noise["long"], noise["short"]],
        images=[noise["image"]],
    )
    assert list(inputs) == processor.model_input_names
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())
    assert inputs["frame_counts"].tolist() == [11, 1, 3]  # in reading order
    assert inputs["pixel_values"].shape == (15, 3, 64, 64)
    assert inputs["seconds"].tolist() == [*range(11), 0, *range(3)]
    assert asked(inputs) == [ids("what?"), *2 * [ids("which  is  older?")]]
    video = processor.pixels(noise["short"])
    assert torch.equal(inputs["pixel_values"][12:], video)
    where = (inputs["input_ids"] == processor.video_token_id).sum(dim=1)
    assert where.tolist() == [1, 1]
    assert (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [0, 1]


def test_all_kinds_of_sources_are_read(processor: Any, noise: Any, tmp_path: Path) -> None:
    frames = noise["short"]
    pictures = [Image.fromarray(frame) for frame in frames]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    video = Video(frames, np.array([0.0, 0.5, 2.0]), "array", False, 3, 3.0)
    sources = [frames, pictures, tmp_path, video]
    inputs = processor(text=CHAT.format("<video>" * 4), videos=sources, fps=2.0)
    parts = inputs["pixel_values"].split(3)
    assert all(torch.equal(part, parts[0]) for part in parts)
    assert inputs["seconds"].tolist() == [*3 * [0, 0.5, 1.0], 0, 0.5, 2.0]
    image = processor(
        text=CHAT.format("<image>" * 3), images=[frames[0], pictures[0], tmp_path / "0.png"]
    )
    assert torch.equal(image["pixel_values"], parts[0][:1].repeat(3, 1, 1, 1))


def test_sources_come_flat_or_per_prompt(processor: Any, noise: Any) -> None:
    pictures = [Image.fromarray(frame) for frame in noise["short"]]
    texts = [CHAT.format(text) for text in ("<video>", "how?", "<video><video>")]
    flat = processor(text=texts, videos=[pictures, noise["long"], noise["short"]])
    nested = processor(text=texts, videos=[[pictures], [], [noise["long"], noise["short"]]])
    assert flat["frame_counts"].tolist() == [3, 11, 3]
    assert torch.equal(flat["pixel_values"], nested["pixel_values"])
    one = processor(text=CHAT.format("<video>"), videos=pictures)
    assert one["frame_counts"].tolist() == [3]


def test_the_question_is_the_first_user_turn(processor: Any, noise: Any) -> None:
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<video>\nWhat\nis it?<|im_end|>\n"
        "<|im_start|>assistant\nA ball.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
    )
    inputs = processor(text=text, videos=noise["short"])
    assert asked(inputs) == [ids("What\nis it?")]
    other = processor(text=text.replace("A ball", "A man"), videos=noise["short"])
    assert torch.equal(inputs["question_ids"], other["question_ids"])
    given = processor(text=text, videos=noise["short"], questions="Who?")
    assert asked(given) == [ids("Who?")]
    assert asked(processor(text=text, videos=noise["short"], questions="")) == [ids("")]
    assert question_of("<|im_start|>user\nWhat? <|im_start|>assistant\nA ball.") is None


def test_long_questions_keep_their_end(noise: Any) -> None:
    config = CLIPVisionConfig(image_size=32, patch_size=16)
    short = BvllmQwen2Processor(image_processor_for(config), tiny_tokenizer(), None, 6)
    inputs = short(text=CHAT.format("<video>one two three four five six"), videos=noise["short"])
    assert inputs["question_ids"].tolist() == [ids("three four five six")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "<video>"}, "questions: got None, and text 0 has visual inputs but no user turn"),
        ({"text": CHAT.format("<video>"), "videos": None}, "videos: got 0, wanted 1, one per <vid"),
        (
            {"text": CHAT.format("what?")},
            "videos: got 1, wanted 0, one per <video> in text",
        ),
        (
            {
                "text": [CHAT.format("<video>")] * 2,
                "videos": [[np.zeros((1, 8, 8, 3), "u1")] * 2, []],
            },
            r"videos: got \[2, 0\] in the prompts, wanted \[1, 1\]",
        ),
        (
            {"text": CHAT.format("<video>" * 2), "videos": [["a.mp4"], "b.mp4"]},
            "videos: got single ones beside lists",
        ),
        ({"text": CHAT.format("<image>"), "videos": None}, "images: got 0, wanted 1"),
        ({"text": CHAT.format("<video>"), "questions": ["a", "b"]}, "questions: got 2, wanted 1"),
        ({"text": CHAT.format("<video>"), "return_tensors": "np"}, "return_tensors: got 'np'"),
        (
            {"text": CHAT.format("what is it? <video>"), "truncation": True, "max_length": 4},
            "text: got 1 placeholders, of which truncation or the tokenizer left 0",
        ),
        ({"text": CHAT.format("<video>"), "videos": "no.mp4"}, "no.mp4: no such file"),
    ],
)
def test_wrong_arguments_are_refused(
    processor: Any, noise: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**{"videos": [noise["short"]], **arguments})


# What Qwen2-Instruct's own template makes of these messages.
TURNS = [
    {"role": "user", "content": "What is this?"},
    {"role": "assistant", "content": "A ball."},
    {"role": "user", "content": " And {this}? "},
]
RENDERED = (
    "<|im_start|>user\nWhat is this?<|im_end|>\n"
    "<|im_start|>assistant\nA ball.<|im_end|>\n"
    "<|im_start|>user\n And {this}? <|im_end|>\n"
)
DEFAULT_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def test_strings_are_rendered_as_qwen2_does(processor: Any) -> None:
    render = processor.apply_chat_template
    assert render(TURNS) == DEFAULT_SYSTEM + RENDERED
    assert render(TURNS, add_generation_prompt=True) == (
        DEFAULT_SYSTEM + RENDERED + "<|im_start|>assistant\n"
    )
    system = {"role": "system", "content": "Be brief."}
    assert render([system, *TURNS]) == "<|im_start|>system\nBe brief.<|im_end|>\n" + RENDERED
    assert render([TURNS, TURNS[:1]]) == [
        DEFAULT_SYSTEM + RENDERED,
        DEFAULT_SYSTEM + "<|im_start|>user\nWhat is this?<|im_end|>\n",
    ]
    assert render(TURNS, chat_template="{{ messages | length }}") == "3"


def test_messages_bring_their_videos_and_images(processor: Any, noise: Any) -> None:
    message = {
        "role": "user",
        "content": [
            {"type": "text", "text": "Is "},
            {"type": "image", "image": Image.fromarray(noise["image"])},
            {"type": "text", "text": " in "},
            {"type": "video", "video": noise["long"]},
            {"type": "text", "text": "?"},
        ],
    }
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    assert text == (
        DEFAULT_SYSTEM + "<|im_start|>user\nIs <image> in <video>?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    expected = processor(text=text, videos=noise["long"], images=noise["image"])
    inputs = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=True)
    assert list(inputs) == list(expected)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    only_ids = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert torch.equal(only_ids, expected["input_ids"])
    pair = processor.apply_chat_template([[message], TURNS], tokenize=True, padding_side="left")
    assert pair["frame_counts"].tolist() == [1, 11]
    assert pair["attention_mask"][:, 0].tolist().count(0) == 1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "audio": "a.wav"}, "content: got a part of type 'audio'"),
        (
            {"type": "video"},
            r"content: got a video with the keys \['type'\], wanted one of",
        ),
        (
            {"type": "image", "image": "a.png", "path": "a.png"},
            "content: got a image with the keys .* wanted one of 'image' or 'path'",
        ),
    ],
)
def test_wrong_messages_are_refused(processor: Any, part: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([{"role": "user", "content": [part]}], tokenize=True)


@pytest.mark.parametrize(
    ("config", "mean", "whole"),
    [
        (EvaVisionConfig(image_size=28), 0.4814, True),
        (CLIPVisionConfig(image_size=28, patch_size=14), 0.4814, False),
        (SiglipVisionConfig(image_size=28, patch_size=14), 0.5, True),
    ],
)
def test_pixels_fit_the_tower(config: Any, mean: float, whole: bool) -> None:
    """A wide frame whose middle is black and whose sides are white."""
    frame = np.full((28, 84, 3), 255, np.uint8)
    frame[:, 28:56] = 0
    made = BvllmQwen2Processor(image_processor_for(config), tiny_tokenizer())
    pixels = made.pixels(frame[None])
    assert pixels.shape == (1, 3, 28, 28)
    assert pixels.dtype == torch.float32
    red = pixels[0, 0, 14]
    assert red[0] == pytest.approx((whole - mean) / (0.5 if mean == 0.5 else 0.2686), abs=1e-2)
    assert (red > 0).any() == whole


def test_pixels_do_not_depend_on_torchvision(noise: Any) -> None:
    pytest.importorskip("torchvision")
    from transformers import CLIPImageProcessor

    sizes: dict[str, Any] = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    }
    made = BvllmQwen2Processor(CLIPImageProcessor(**sizes), tiny_tokenizer())
    frame = noise["image"]
    picture = Image.fromarray(frame).resize((48, 32), Image.Resampling.BICUBIC)
    raw = torch.from_numpy(np.asarray(picture)[:, 8:40].copy()).permute(2, 0, 1) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    torch.testing.assert_close(made.pixels(frame[None])[0], (raw - mean) / std)


def test_saving_keeps_everything(processor: Any, noise: Any, tmp_path: Path) -> None:
    text = CHAT.format("<video>what is it?")
    expected = processor(text=text, videos=noise["short"])  # a tokenizer saves how it last padded
    processor.save_pretrained(tmp_path)
    source: Any
    for source in (BvllmQwen2Processor, AutoProcessor):
        loaded: Any = source.from_pretrained(tmp_path)
        kind: type = type(loaded)
        assert kind is BvllmQwen2Processor
        assert loaded.chat_template == processor.chat_template
        assert loaded.max_question_tokens == processor.max_question_tokens
        assert type(loaded.image_processor) is type(processor.image_processor)
        inputs = loaded(text=text, videos=noise["short"])
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)
        assert loaded.batch_decode([[2003, 2009]]) == ["is it"]
        assert loaded.decode([2003, 2009]) == "is it"
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (again / file).read_text() == (tmp_path / file).read_text()
    inputs = AutoProcessor.from_pretrained(again)(text=text, videos=noise["short"])
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_settings_of_ones_own_are_saved(noise: Any, tmp_path: Path) -> None:
    config = CLIPVisionConfig(image_size=32, patch_size=16)
    made = BvllmQwen2Processor(image_processor_for(config), tiny_tokenizer(), "{{ 1 }}", 6)
    made.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.max_question_tokens == 6
    assert loaded.apply_chat_template(TURNS) == "1"
    assert loaded.pixels(noise["short"]).shape == (3, 3, 32, 32)


def test_placeholders_a_tokenizer_has_already_are_kept() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    before = tokenizer.convert_tokens_to_ids("<video>")
    made = BvllmQwen2Processor(image_processor_for(EvaVisionConfig()), tokenizer)
    assert made.video_token_id == before
    assert made.image_token_id == before + 1
    assert len(tokenizer) == before + 2
