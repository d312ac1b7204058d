"""What a prompt cannot come with is refused by name; what it lacks is found, exactly."""

from __future__ import annotations

import copy
from typing import Any

import processors
import pytest
import torch
from asked import (
    FRAMES,
    PLENTY,
    far,
    greedy,
    lengths,
    prompt,
    prompt_of,
    seen_by_decoder,
    wrapped,
)
from tiny import family
from transformers import DynamicCache, StaticCache

import bvllm_adapters as bvllm

NAMES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
ROPE = ("qwen2_5_vl", "qwen3_vl")
BUDGET = 7
every_name = pytest.mark.parametrize("name", NAMES)
CUT = "got that of a prompt whose visual tokens were cut"


def turn_two(name: str, inputs: dict[str, Any], new: Any) -> dict[str, Any]:
    """The conversation so far and another turn, without pixels, as code that keeps a cache does."""
    more = prompt_of(name, [{"role": "user", "content": "And then?"}], None)["input_ids"]
    ids = torch.cat([new, more], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@every_name
def test_a_cache_of_a_compacted_prompt_is_refused(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    out = greedy(model, inputs, return_dict_in_generate=True)
    second = turn_two(name, inputs, out.sequences)
    for argument in ("cache", "past_key_values"):
        with pytest.raises(ValueError, match=rf"{argument}: {CUT}"):
            greedy(model, {**second, argument: out.cache})
        with pytest.raises(ValueError, match=rf"{argument}: {CUT}"):
            model(**second, **{argument: out.cache})
    with pytest.raises(ValueError, match=CUT):  # a copy for several questions about one video
        greedy(model, {**second, "cache": copy.deepcopy(out.cache)})
    with torch.no_grad():
        step = model(**inputs, use_cache=True)
    with pytest.raises(ValueError, match=CUT):
        model(input_ids=step.logits[:, -1:].argmax(-1), cache=step.cache)
    with pytest.raises(ValueError, match=CUT):  # before what else is wrong with it
        greedy(model, {**inputs, "cache": out.cache})


@every_name
def test_the_callers_own_cache_is_known_again(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    cache = DynamicCache(config=model.config)
    out = greedy(model, inputs, cache=cache)
    second = turn_two(name, inputs, out)
    with pytest.raises(ValueError, match=CUT):
        greedy(model, {**second, "cache": cache})
    broken = DynamicCache(config=model.config)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = model.lm_head.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        greedy(model, inputs, cache=broken)
    handle.remove()
    with pytest.raises(ValueError, match=CUT):  # it holds a compacted prompt all the same
        greedy(model, {**second, "cache": broken})


def test_an_emptied_cache_is_as_new() -> None:
    name = "llava_onevision"
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    cache = StaticCache(config=model.config, max_cache_len=256)
    want = greedy(model, inputs, cache=cache)
    cache.reset()
    assert torch.equal(greedy(model, inputs, cache=cache), want)
    cache.reset()
    text = prompt_of(name, [{"role": "user", "content": "Hello"}], None)
    once = greedy(model, text, cache=cache)
    second = turn_two(name, text, once)
    want = greedy(processors.model(name), second)
    assert torch.equal(greedy(model, second, cache=cache), want)


@every_name
def test_caches_of_text_and_of_whole_prompts_work_as_unwrapped(name: str) -> None:
    bare, model = processors.model(name), wrapped(name, max_tokens=PLENTY)
    text = prompt_of(name, [{"role": "user", "content": "Hello"}], None)
    for inputs in (text, prompt(name)):
        answers = []
        for each in (bare, model):
            out = greedy(each, inputs, return_dict_in_generate=True)
            second = turn_two(name, inputs, out.sequences)
            answers.append(greedy(each, {**second, "cache": out.cache}))
        assert torch.equal(*answers)
    answers = []
    for each in (bare, model):  # the loop of who decodes by hand
        with torch.no_grad():
            out = each(**prompt(name), use_cache=True)
            steps = [out.logits[:, -1:].argmax(-1)]
            for _ in range(3):
                out = each(input_ids=steps[-1], cache=out.cache, use_cache=True)
                steps.append(out.logits[:, -1:].argmax(-1))
        answers.append(torch.cat([*steps, out.logits[:, -1].argsort(-1)], dim=1))
    assert torch.equal(*answers)


@every_name
def test_a_prefix_beside_new_pixels_is_refused(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    text = prompt_of(name, [{"role": "user", "content": "Hello"}], None)
    out = greedy(model, text, return_dict_in_generate=True)
    held = out.cache.get_seq_length()
    for call in (lambda **kwargs: greedy(model, kwargs), model):
        with pytest.raises(ValueError, match=rf"cache: got {held} ids of an earlier call"):
            call(**inputs, cache=out.cache)
        with pytest.raises(ValueError, match="cache: got tuple, wanted a Cache"):
            call(**inputs, cache=((1, 2),))


@every_name
@pytest.mark.parametrize("max_tokens", [BUDGET, PLENTY])
def test_what_cannot_be_compacted_is_refused_by_name(name: str, max_tokens: int) -> None:
    model, inputs = wrapped(name, max_tokens=max_tokens), prompt(name)
    ids = inputs["input_ids"]
    length = ids.shape[1]
    wrong: dict[str, Any] = {
        "position_ids": torch.arange(length)[None],
        "inputs_embeds": torch.zeros(1, length, model.get_input_embeddings().embedding_dim),
        "mm_encoder_outputs": {"video": object()},
        "shift_labels": ids,
        "cu_seq_lens_q": torch.tensor([0, length]),
        "labels": ids[:, 1:],
        "attention_mask": torch.ones(1, 1, length, length),
    }
    for argument, value in wrong.items():
        for call in (lambda **kwargs: greedy(model, kwargs), model):
            with pytest.raises(ValueError, match=rf"^{argument}: got .*, wanted"):
                call(**{**inputs, argument: value})
    for value in (None, ids[0]):
        with pytest.raises(ValueError, match=r"^input_ids: got .* beside pixels, wanted"):
            model(**{**inputs, "input_ids": value})


@pytest.mark.parametrize("name", ROPE)
@pytest.mark.parametrize("max_tokens", [BUDGET, PLENTY])
def test_missing_token_types_are_those_of_the_processor(name: str, max_tokens: int) -> None:
    """generate() of the unmodified model is silently wrong without them."""
    bare, model, inputs = processors.model(name), wrapped(name, max_tokens=max_tokens), prompt(name)
    lacking = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    how: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    want, found = (greedy(model, each, **how) for each in (inputs, lacking))
    assert torch.equal(want.sequences, found.sequences)
    assert all(torch.equal(a, b) for a, b in zip(want.logits, found.logits, strict=True))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**lacking).logits)
    without = greedy(bare, lacking, **how).logits[0]
    assert far(without, greedy(bare, inputs, **how).logits[0]) > 0.1  # the trap is still there


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_derived_types_equal_the_processors_beside_images(name: str) -> None:
    from bvllm_transformers.arguments import with_types
    from bvllm_transformers.families import family_of

    content = [
        {"type": "image", "image": FRAMES[0]},
        {"type": "text", "text": "and"},
        {"type": "video", "video": FRAMES},
    ]
    inputs = prompt_of(name, [{"role": "user", "content": content}])
    model = processors.model(name)
    lacking = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    derived = with_types(model, family_of(model), lacking)["mm_token_type_ids"]
    assert torch.equal(derived, inputs["mm_token_type_ids"].to(derived))
    assert set(derived.flatten().tolist()) == {0, 1, 2}


def test_missing_token_types_that_the_ids_do_not_tell_are_refused() -> None:
    one = family("glm4v")
    model = bvllm.wrap(one.model(), host="bvllm_transformers:HOST", max_tokens=BUDGET)
    inputs = {k: v for k, v in one.inputs().items() if k != "mm_token_type_ids"}
    with pytest.raises(ValueError, match="mm_token_type_ids: got None, wanted those"):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("name", ROPE)
def test_positions_are_given_and_nothing_is_left_on_the_model(name: str) -> None:
    """Models keep how far the last prompt's positions ran ahead; two threads would share that."""
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    model.base_model.rope_deltas = mark = torch.tensor([[12345]])
    seen = seen_by_decoder(model)
    greedy(model, inputs)
    with torch.no_grad():
        model(**inputs)
    assert model.base_model.rope_deltas is mark
    first, *later = (each["position_ids"] for each in seen[:-1])
    assert first.shape == (4, 1, lengths(seen)[0])
    assert torch.equal(first[0, 0], torch.arange(first.shape[2]))
    assert max(int(step.max()) for step in later) < 12345


@every_name
def test_images_beside_a_video_share_the_budget_in_forward_and_generate(name: str) -> None:
    """The unmodified forward() refuses features of a video beside pixels of an image."""
    if name == "internvl":
        pytest.skip("its images and frames are the same argument")
    content = [
        {"type": "image", "image": FRAMES[0]},
        {"type": "video", "video": FRAMES},
        {"type": "text", "text": "Where?"},
    ]
    inputs = prompt_of(name, [{"role": "user", "content": content}])
    bare, model = processors.model(name), wrapped(name, max_tokens=PLENTY)
    for each in (bare, model):
        if name == "llava_onevision":
            each.config.image_grid_pinpoints = [[16, 16]]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, bare(**inputs).logits)
    assert torch.equal(greedy(model, inputs), greedy(bare, inputs))
    config = bare.config
    visual = torch.isin(
        inputs["input_ids"], torch.tensor([config.image_token_id, config.video_token_id])
    )
    model = bvllm.wrap(bare, host="bvllm_transformers:HOST", max_tokens=BUDGET)
    seen = seen_by_decoder(model)
    greedy(model, inputs)
    with torch.no_grad():
        model(**inputs)
    words = inputs["input_ids"].shape[1] - int(visual.sum())
    if name == "qwen3_vl":
        assert lengths(seen)[0] < words + BUDGET  # times of pairs that have gone
    else:
        assert lengths(seen)[0] == lengths(seen)[-1] == words + BUDGET


def test_images_that_go_past_the_budget_are_refused() -> None:
    one = family("video_llava")
    ids, images = one.inputs()["input_ids"], torch.zeros(1, 3, 4, 4)
    model = bvllm.wrap(one.model(), max_tokens=5)
    with pytest.raises(ValueError, match="pixel_values_images: got images, which are not put"):
        model(input_ids=ids, pixel_values_images=images)
