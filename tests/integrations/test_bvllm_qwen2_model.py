"""Forward and generate: batches, padding, budgets, labels, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bvllm_adapters.hosts.language_model import CACHE_NAMES, cache_of

USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS: list[tuple[str, list[str], list[str]]] = [
    # text, its videos, its images
    ("<video>what does the man on the roof throw?", ["long"], []),
    ("<image>what is it?", [], ["image"]),
    ("how are you today?", [], []),
    ("first <video> and then <video> which is longer?", ["short", "long"], []),
]


def batch(processor: Any, noise: dict[str, np.ndarray], rows: Any = range(4), **kwargs: Any) -> Any:
    chosen = [PROMPTS[row] for row in rows]
    return processor(
        text=[USER.format(text) for text, _, _ in chosen],
        videos=[[noise[name] for name in videos] for _, videos, _ in chosen],
        images=[[noise[name] for name in images] for _, _, images in chosen],
        **kwargs,
    )


def new_ids(model: Any, inputs: Any, **settings: Any) -> Any:
    """What is generated behind the prompts, which come back as they were."""
    ids = model.generate(**inputs, **settings)
    length = inputs["input_ids"].shape[1]
    times = len(ids) // len(inputs["input_ids"])
    assert torch.equal(ids[:, :length], inputs["input_ids"].repeat_interleave(times, dim=0))
    return ids[:, length:]


@pytest.mark.parametrize("max_tokens", [None, 6])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_a_mixed_batch_equals_each_prompt_alone(
    tiny_qwen2: Any, noise: Any, padding_side: str, max_tokens: int | None
) -> None:
    model, processor = tiny_qwen2
    together_in = batch(processor, noise, padding_side=padding_side)
    together = model(**together_in, max_tokens=max_tokens)
    ids = new_ids(model, together_in, max_tokens=max_tokens, max_new_tokens=8, do_sample=False)
    assert bool((together_in["attention_mask"] == 0).any())
    for row in range(len(PROMPTS)):
        alone_in = batch(processor, noise, [row])
        alone = model(**alone_in, max_tokens=max_tokens)
        there = together.logits[row, together.attention_mask[row].bool()]
        size = float(alone.logits.abs().max())
        torch.testing.assert_close(there / size, alone.logits[0] / size, atol=1e-5, rtol=0)
        alone_ids = new_ids(
            model, alone_in, max_tokens=max_tokens, max_new_tokens=8, do_sample=False
        )
        assert ids[row].tolist() == alone_ids[0].tolist()


@torch.no_grad()
def test_visual_tokens_of_a_prompt_share_its_budget(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    tokens = model(**batch(processor, noise), max_tokens=6).visual_tokens
    assert [len(t) for t in tokens[:2]] == [6, 4]  # a video; an image has but 4
    assert len(tokens[2]) + len(tokens[3]) == 6
    assert min(len(tokens[2]), len(tokens[3])) > 0


@torch.no_grad()
def test_the_spliced_length_is_that_of_text_and_visual_tokens(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [3])
    out = model(**inputs)
    length = inputs["input_ids"].shape[1] - 2 + sum(map(len, out.visual_tokens))
    assert out.logits.shape == (1, length, model.config.text_config.vocab_size)
    assert out.attention_mask.tolist() == [[1] * length]


@torch.no_grad()
def test_text_only_prompts_never_touch_the_tower(
    tiny_qwen2: Any, noise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_qwen2

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(model.vision_tower, "forward", refuse)
    inputs = batch(processor, noise, [2])
    assert set(inputs) == {"input_ids", "attention_mask"}
    plain = model.language_model(**inputs).logits
    assert torch.equal(model(**inputs).logits, plain)
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    expected = model.language_model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert ids.tolist() == expected.tolist()


@torch.no_grad()
def test_a_placeholder_at_padding_is_none(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [0])
    logits = model(**inputs).logits
    for name, value in (("input_ids", model.config.image_token_id), ("attention_mask", 0)):
        padding = torch.full((1, 2), value)
        inputs[name] = torch.cat([padding, inputs[name]], dim=1)
    assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("change", ["evaluation", "training", "soft"])
def test_patches_of_long_videos_are_kept_where_all_are_mixed(
    tiny_qwen2: Any, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_qwen2
    model.train(change == "training")
    monkeypatch.setattr("bvllm_adapters.seeing.encoding.KEEP_FRAMES", 4)
    if change == "soft":
        tokenizer = model.balanced_tokenizer
        tokenizer.config = replace(tokenizer.config, evaluation="soft")
    for frames in (4, 5):
        features = model.encode(torch.zeros(frames, 3, 64, 64), torch.arange(float(frames)))
        forgotten = change == "evaluation" and frames > 4
        assert isinstance(features.patches, Tensor) != forgotten


@torch.no_grad()
def test_greedy_generation_is_what_forward_says(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [3])
    generated = new_ids(model, inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    assert len(set(generated)) > 2

    # Without a cache: the whole prompt again for each new token.
    step = {**inputs}
    found = []
    for _ in generated:
        token = model(**step, use_cache=False).logits[:, -1].argmax(dim=1, keepdim=True)
        found.append(int(token))
        step["input_ids"] = torch.cat([step["input_ids"], token], dim=1)
        step["attention_mask"] = torch.ones_like(step["input_ids"])
    assert found == generated


@torch.no_grad()
@pytest.mark.parametrize("cache", CACHE_NAMES)
def test_a_cache_goes_on_from_a_ragged_batch(tiny_qwen2: Any, noise: Any, cache: str) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, padding_side="left")
    generated = new_ids(model, inputs, max_new_tokens=6, do_sample=False)
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    assert out.logits.shape[1] == 1
    mask, found = out.attention_mask, []
    for _ in range(6):
        token = out.logits[:, -1].argmax(dim=1, keepdim=True)
        found.append(token)
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        out = model(token, attention_mask=mask, **{cache: cache_of(out)})
    assert torch.cat(found, dim=1).tolist() == generated.tolist()


@torch.no_grad()
def test_beams_in_a_ragged_batch_equal_beams_alone(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    settings = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    ids = new_ids(model, batch(processor, noise), **settings)
    greedy = new_ids(model, batch(processor, noise), max_new_tokens=6, do_sample=False)
    assert ids.tolist() != greedy.tolist()
    for row in range(len(PROMPTS)):
        alone = new_ids(model, batch(processor, noise, [row]), **settings)
        assert ids[row].tolist() == alone[0].tolist()


@torch.no_grad()
def test_sampling_gives_as_many_answers_as_asked_for(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [0, 3])
    ids = new_ids(model, inputs, max_new_tokens=5, do_sample=True, num_return_sequences=3)
    assert ids.shape == (6, 5)
    assert len({tuple(row) for row in ids.tolist()}) > 2
    greedy = new_ids(model, inputs, max_new_tokens=5, do_sample=False)
    one = new_ids(model, inputs, max_new_tokens=5, do_sample=True, top_k=1)
    assert one.tolist() == greedy.tolist()


def test_generation_settings_come_from_the_model_or_the_call(tiny_qwen2: Any, noise: Any) -> None:
    from transformers import GenerationConfig

    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [0])
    model.generation_config.max_new_tokens = 3
    assert new_ids(model, inputs).shape == (1, 3)
    assert new_ids(model, inputs, max_new_tokens=2).shape == (1, 2)
    assert model.generation_config.max_new_tokens == 3
    given = GenerationConfig(max_new_tokens=4, pad_token_id=0)
    assert new_ids(model, inputs, generation_config=given).shape == (1, 4)


@torch.no_grad()
def test_evaluation_is_deterministic_and_training_draws_noise(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [0])
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    runs = [model(**inputs, generator=torch.Generator().manual_seed(s)).logits for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert runs[0].shape != runs[2].shape or not torch.equal(runs[0], runs[2])


def answered(processor: Any, noise: Any, answer: str) -> tuple[Any, Tensor]:
    """A video prompt with its answer, and labels on the answer alone."""
    text = USER.format(PROMPTS[0][0])
    inputs = processor(text=[text + answer], videos=[noise["long"]])
    prompt = processor.tokenizer(text, return_tensors="pt")["input_ids"].shape[1]
    labels = inputs["input_ids"].clone()
    labels[:, :prompt] = -100
    return inputs, labels


@torch.no_grad()
def test_answers_never_reach_the_visual_tokens(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    runs = []
    for answer in ("a ball", "two green apples on the video"):
        inputs, labels = answered(processor, noise, answer)
        runs.append(model(**inputs, labels=labels))
    assert runs[0].loss != runs[1].loss
    first, second = (run.visual_tokens[0] for run in runs)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.selection.weights, second.selection.weights)


@torch.no_grad()
def test_another_question_gives_other_visual_tokens(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    text, video = USER.format("<video>what?"), noise["long"]
    tokens = [
        model(**processor(text=text, videos=video, questions=question)).visual_tokens[0]
        for question in ("what is taped to the wall?", "where is the ball?", "who sings", "")
    ]
    chosen = {(*t.selection.frame.tolist(), *t.selection.size.tolist()) for t in tokens}
    assert len(chosen) > 1
    assert len({float(t.tokens[0, 0]) for t in tokens}) == 4


@torch.no_grad()
def test_the_loss_is_that_of_the_answer_behind_the_visual_tokens(
    tiny_qwen2: Any, noise: Any
) -> None:
    model, processor = tiny_qwen2
    inputs, labels = answered(processor, noise, "a ball")
    out = model(**inputs, labels=labels)
    kept = labels[labels != -100]
    logits = out.logits[0, -len(kept) - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, kept)
    torch.testing.assert_close(out.loss, expected)
    assert torch.isnan(model(**inputs, labels=torch.full_like(labels, -100)).loss)


def test_a_tuple_is_given_where_asked_for(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [2])
    assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).logits)


@torch.no_grad()
def test_word_embeddings_go_in_directly(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    ids = batch(processor, noise, [2])["input_ids"]
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(ids).logits)


# What is refused. Each: a change to good inputs, and the message.
def put(name: str, change: Any) -> Any:
    return lambda inputs: inputs.update({name: change(inputs[name])})


REFUSED: dict[str, tuple[Any, str]] = {
    "no question": (
        lambda inputs: inputs.pop("question_ids"),
        r"question_ids: got None, wanted int64 WordPiece ids \(1, L\)",
    ),
    "questions for others": (
        put("question_ids", lambda ids: ids.repeat(2, 1)),
        r"question_ids: got torch.int64 \(2, \d+\), wanted torch.int64 \(1, L\)",
    ),
    "float questions": (put("question_ids", torch.Tensor.float), "question_ids: got torch.float32"),
    "question mask": (
        put("question_mask", lambda mask: mask[:, 1:]),
        "question_mask: got shape .* as question_ids",
    ),
    "no pixels": (
        lambda inputs: inputs.pop("pixel_values"),
        r"pixel_values: got None, wanted a float tensor \(11, 3, 64, 64\)",
    ),
    "raw frames": (
        put("pixel_values", lambda pixels: pixels.to(torch.uint8)),
        "pixel_values: got torch.uint8, wanted a float tensor",
    ),
    "size": (
        put("pixel_values", lambda pixels: pixels[..., :32]),
        r"pixel_values: got shape \(11, 3, 64, 32\), wanted a float tensor \(11, 3, 64, 64\)",
    ),
    "a frame less": (
        put("pixel_values", lambda pixels: pixels[1:]),
        r"pixel_values: got shape \(10, .*as many frames as frame_counts sum to",
    ),
    "nan": (
        put("pixel_values", lambda pixels: pixels / 0 * 0),
        "pixel_values: got NaN or inf, wanted finite numbers",
    ),
    "no counts": (
        lambda inputs: inputs.pop("frame_counts"),
        r"frame_counts: got None, wanted an integer tensor \(1,\), one for each placeholder",
    ),
    "two counts": (
        put("frame_counts", lambda counts: torch.tensor([5, 6])),
        r"frame_counts: got torch.int64 \(2,\), wanted an integer tensor \(1,\)",
    ),
    "float counts": (put("frame_counts", torch.Tensor.float), "frame_counts: got torch.float32"),
    "no frames": (
        put("frame_counts", lambda counts: counts * 0),
        r"frame_counts\[0\]: got 0, wanted at least 1",
    ),
    "seconds": (
        put("seconds", lambda seconds: seconds[1:]),
        r"seconds: got shape \(10,\), wanted \(11,\)",
    ),
    "time goes back": (put("seconds", lambda seconds: -seconds), "seconds: got times that go back"),
    "mask": (
        put("attention_mask", lambda mask: mask[:, 1:]),
        "attention_mask: got shape .*, wanted .* as input_ids",
    ),
    "positions": (
        lambda inputs: inputs.update(position_ids=inputs["input_ids"]),
        "position_ids: got a tensor, wanted None",
    ),
    "labels": (
        lambda inputs: inputs.update(labels=inputs["input_ids"][:, 1:]),
        "labels: got shape",
    ),
    "budget": (lambda inputs: inputs.update(max_tokens=0), "max_tokens: got 0, wanted an int >= 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_inputs_are_refused(tiny_qwen2: Any, noise: Any, case: str) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [0])
    change, message = REFUSED[case]
    change(inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_an_image_of_two_frames_is_refused(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [1])
    inputs["frame_counts"] += 1
    with pytest.raises(ValueError, match=r"frame_counts\[0\]: got 2, wanted 1 for an image"):
        model(**inputs)


def test_pixels_without_placeholder_are_refused(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [2])
    pixels = torch.zeros(2, 3, 64, 64)
    with pytest.raises(ValueError, match="pixel_values: got 2, wanted none"):
        model(**inputs, pixel_values=pixels)
    with pytest.raises(ValueError, match="frame_counts: got 1, wanted none"):
        model.generate(**inputs, frame_counts=torch.tensor([2]))


def test_a_placeholder_behind_a_cache_is_refused(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [0])
    cache = cache_of(model(**inputs, use_cache=True))
    length = cache.get_seq_length()
    with pytest.raises(ValueError, match=f"past_key_values: got {length} tokens, wanted none"):
        model(**inputs, past_key_values=cache)


def test_seconds_default_to_one_frame_a_second(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [3])
    seconds = inputs.pop("seconds")
    tokens = model(**inputs).visual_tokens
    assert torch.cat([t.seconds for t in tokens]).tolist() == seconds.tolist()


@torch.no_grad()
def test_an_unmasked_question_is_taken_whole(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = batch(processor, noise, [0])
    logits = model(**inputs).logits
    del inputs["question_mask"]
    assert torch.equal(model(**inputs).logits, logits)
