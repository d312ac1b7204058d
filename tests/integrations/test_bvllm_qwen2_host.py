"""The host: found by name, asked, wrapped, unwrapped, saved as an adapter."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bvllm_adapters as bvllm
from bvllm_adapters.hosts.find import find_host, host_of
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_qwen2 import HOST
from bvllm_qwen2.tiny import tiny_model

QUESTION = "what is taped to the wall?"


def prompt(processor: Any, noise: Any, text: str = "<video>what is it?") -> Any:
    video = {"videos": noise["long"]} if "<video>" in text else {}
    return processor(text=f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", **video)


def test_it_is_found_by_its_models_name(tiny_qwen2: Any) -> None:
    assert find_host("BvllmQwen2ForConditionalGeneration") is HOST
    assert host_of(tiny_qwen2[0]) is HOST


def test_asking_a_native_model(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    answer = bvllm.ask(model, noise["long"], QUESTION, processor=processor, max_new_tokens=5)
    assert answer.text
    assert answer.trace.frames_decoded == 11
    assert 1 < len(answer.trace.frames) <= 8
    assert answer.trace.num_tokens == 4 * len(answer.trace.frames) <= 32
    tight = bvllm.ask(
        model, noise["long"], QUESTION, processor=processor, max_tokens=3, max_new_tokens=5
    )
    assert tight.trace.num_tokens == 3
    assert (
        len(
            processor.tokenizer(bvllm.ask(model, noise["image"], "", processor=processor).text)[
                "input_ids"
            ]
        )
        > 20
    )  # more than transformers' own default


def test_asking_is_generating_from_a_chat(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    content = [
        {"type": "video", "video": noise["long"]},
        {"type": "text", "text": f"\n{QUESTION}"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True
    )
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    ids = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    expected = processor.batch_decode(ids, skip_special_tokens=True)
    answer = bvllm.ask(model, noise["long"], QUESTION, processor=processor, **settings)
    assert answer.text == expected[0].strip()


def test_placeholders_in_a_question_are_only_text(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    answer = bvllm.ask(
        model, noise["long"], "<video>what? <image>", processor=processor, max_new_tokens=4
    )
    assert answer.text


def test_long_videos_give_the_same_answer_without_keeping_patches(
    tiny_qwen2: Any, noise: Any
) -> None:
    model, processor = tiny_qwen2
    settings: dict[str, Any] = {"processor": processor, "max_new_tokens": 6, "do_sample": False}
    kept = bvllm.ask(model, noise["long"], QUESTION, **settings)
    again = bvllm.ask(
        model, noise["long"], QUESTION, encoding=Encoding(patches="again"), **settings
    )
    assert again.text == kept.text
    assert again.trace.frames == kept.trace.frames


def test_a_folder_is_enough_to_ask(tiny_qwen2: Any, noise: Any, tmp_path: Path) -> None:
    model, processor = tiny_qwen2
    expected = bvllm.ask(model, noise["long"], QUESTION, processor=processor, max_new_tokens=4)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = bvllm.load(tmp_path)
    answer = bvllm.ask(loaded, noise["long"], QUESTION, max_new_tokens=4)
    assert answer.text == expected.text


@torch.no_grad()
def test_unwrapping_gives_the_model_back(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    video, text = prompt(processor, noise), prompt(processor, noise, "how are you?")
    before, text_before = model(**video).logits, model(**text).logits
    keys = list(model.state_dict())
    assert bvllm.wrap(model, max_tokens=5) is model
    assert len(model(**video).visual_tokens[0]) == 5
    assert torch.equal(model(**text).logits, text_before)
    assert list(model.state_dict()) == keys
    bvllm.unwrap(model)
    assert torch.equal(model(**video).logits, before)
    assert list(model.state_dict()) == keys


@torch.no_grad()
def test_a_copy_of_a_wrapped_model_is_wrapped(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    video = prompt(processor, noise)
    before = model(**video).logits
    other = copy.deepcopy(bvllm.wrap(model, max_tokens=5))
    expected = model(**video).logits
    bvllm.unwrap(model)
    assert torch.equal(other(**video).logits, expected)
    assert torch.equal(bvllm.unwrap(other)(**video).logits, before)


@torch.no_grad()
def test_a_wrapped_model_is_saved_with_its_adapter(
    tiny_qwen2: Any, noise: Any, tmp_path: Path
) -> None:
    model, processor = tiny_qwen2
    video = prompt(processor, noise)
    before = model(**video).logits
    config = HOST.config(model)
    bvllm.wrap(model, config=replace(config, num_frames=3, max_tokens=9, frame_feature="mean"))
    expected = model(**video).logits
    assert not torch.equal(expected[:, -1], before[:, -1])
    model.save_pretrained(tmp_path)
    loaded: Any = bvllm.load(tmp_path)
    assert torch.equal(loaded(**video).logits, expected)
    assert torch.equal(bvllm.unwrap(loaded)(**video).logits, before)


@torch.no_grad()
def test_an_adapter_goes_onto_a_fresh_copy(tiny_qwen2: Any, noise: Any, tmp_path: Path) -> None:
    model, processor = tiny_qwen2
    with torch.no_grad():
        for parameter in model.balanced_tokenizer.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    bvllm.save_adapter(model, tmp_path)
    fresh, _ = tiny_model()
    video = prompt(processor, noise)
    expected = model(**video).visual_tokens[0]
    assert not torch.equal(fresh(**video).visual_tokens[0].tokens, expected.tokens)
    bvllm.wrap(fresh, adapter=tmp_path)
    tokens = fresh(**video).visual_tokens[0]
    assert torch.equal(tokens.tokens, expected.tokens)
    assert torch.equal(tokens.frame, expected.frame)


def test_the_tiny_model_comes_from_its_seed_alone() -> None:
    torch.manual_seed(5)
    first: Any = tiny_model(1)[0]
    drawn = torch.rand(1)
    torch.manual_seed(6)
    second: Any = tiny_model(1)[0]
    other: Any = tiny_model(2)[0]
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize("wrong", ["vision_width", "llm_width"])
def test_an_adapter_of_other_widths_is_refused(tiny_qwen2: Any, wrong: str) -> None:
    model, _ = tiny_qwen2
    sizes: dict[str, Any] = {wrong: 96}
    config = replace(HOST.config(model), **sizes)
    with pytest.raises(ValueError, match=f"{wrong}: got 96, wanted 64 as the model has"):
        bvllm.wrap(model, config=config)
