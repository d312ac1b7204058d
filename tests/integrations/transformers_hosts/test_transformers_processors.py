"""The user's own snippet on four real processors, from a folder and a clip to an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import write_video
from processors import PROCESSORS, answer, messages, model, prepare, processor, read, write
from tiny import family
from transformers import AutoProcessor

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=24)


@pytest.mark.parametrize("name", PROCESSORS)
def test_from_a_folder_and_a_clip_to_an_answer(name: str, clip: Path, tmp_path: Path) -> None:
    write(name, tmp_path)
    its_processor = AutoProcessor.from_pretrained(tmp_path)
    its_model = family(name).model_class.from_pretrained(tmp_path)
    frames, settings = read(clip, step=4)
    assert frames.shape == (6, 64, 96, 3)
    prompt = messages(frames)
    words = answer(its_model, its_processor, prompt, settings, max_new_tokens=8)
    assert words
    assert words == answer(model(name), processor(name), prompt, settings, max_new_tokens=8)
    with torch.no_grad():
        seen = its_model(**prepare(its_processor, prompt, **settings)).logits
        other = its_model(
            **prepare(its_processor, messages(frames[::-1].copy()), **settings)
        ).logits
    assert (seen - other)[0, -1].abs().max() > 0.01


@pytest.mark.parametrize("name", PROCESSORS)
def test_frames_without_times(name: str) -> None:
    inputs = prepare(processor(name), messages(FRAMES))
    assert answer(model(name), processor(name), messages(list(FRAMES)), max_new_tokens=8)
    assert inputs["input_ids"].max() < len(processor(name).tokenizer)


@pytest.mark.parametrize("name", PROCESSORS)
def test_text_alone_and_bytes_come_back(name: str) -> None:
    its_processor = processor(name)
    prompt: Any = [{"role": "user", "content": "Wie heißt er?"}]
    ids = prepare(its_processor, prompt)["input_ids"]
    text = "<|im_start|>user\nWie heißt er?<|im_end|>\n<|im_start|>assistant\n"
    assert its_processor.batch_decode(ids) == [text]
    assert len(answer(model(name), its_processor, prompt)) > 0


@pytest.mark.parametrize("name", ["qwen3_vl"])
def test_times_are_of_the_clip(name: str, clip: Path) -> None:
    frames, settings = read(clip, step=4)
    inputs = prepare(processor(name), messages(frames), **settings)
    text = processor(name).batch_decode(inputs["input_ids"])[0]
    for second in ("0.2", "1.0", "1.8"):  # between the two frames of a pair, at 10 a second
        assert f"<{second} seconds>" in text


@pytest.mark.parametrize(
    ("name", "video", "image"),
    [("llava_onevision", "<video>\n", "<image>\n"), ("internvl", "<video>\n", "<IMG_CONTEXT>\n")],
)
def test_a_picture_ends_its_line_where_published_templates_say_so(
    name: str, video: str, image: str
) -> None:
    for kind, stands in (("video", video), ("image", image)):
        content = [{"type": kind}, {"type": "text", "text": "What?"}]
        prompt = processor(name).apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False
        )
        assert prompt == f"<|im_start|>user\n{stands}What?<|im_end|>\n"
