"""generate() and forward() of a wrapped model are called as before, and answer in these terms."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import processors
import pytest
import torch
from asked import FRAMES, PLENTY, batch, far, greedy, lengths, prompt, seen_by_decoder, wrapped
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

import bvllm_adapters as bvllm

NAMES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
BUDGET = 7
every_name = pytest.mark.parametrize("name", NAMES)


@every_name
def test_the_users_own_snippet(name: str) -> None:
    its_processor, messages = processors.processor(name), processors.messages(FRAMES)
    before = processors.answer(processors.model(name), its_processor, messages)
    assert processors.answer(wrapped(name, max_tokens=PLENTY), its_processor, messages) == before
    model = wrapped(name, max_tokens=BUDGET)
    seen = seen_by_decoder(model)
    assert processors.answer(model, its_processor, messages)
    inputs = processors.prepare(its_processor, messages)
    gone = inputs["input_ids"].shape[1] - lengths(seen)[0]
    assert gone >= 9  # of at least 16 visual tokens 7 are left


@every_name
def test_sequences_begin_with_the_callers_ids(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    ids = inputs["input_ids"]
    for how in ({}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}):
        out = greedy(model, inputs, **how)
        assert out.shape == (how.get("num_return_sequences", 1), ids.shape[1] + 5)
        assert torch.equal(out[:, : ids.shape[1]], ids.expand(len(out), -1))
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    positional = model.generate(ids, max_new_tokens=5, do_sample=False, **rest)
    assert torch.equal(positional, greedy(model, inputs))
    config = GenerationConfig(max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(ids, config, **rest), positional)


def test_input_ids_twice() -> None:
    model, inputs = wrapped("llava_onevision", max_tokens=BUDGET), prompt("llava_onevision")
    with pytest.raises(ValueError, match=r"inputs: got them beside input_ids"):
        model.generate(inputs["input_ids"], **inputs)
    with pytest.raises(TypeError, match="multiple values"):
        model(inputs["input_ids"], **inputs)


@every_name
def test_lengths_count_the_callers_ids(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    length = inputs["input_ids"].shape[1]
    want = greedy(model, inputs, max_new_tokens=6)
    plain = {"do_sample": False}
    assert torch.equal(model.generate(**inputs, max_length=length + 6, **plain), want)
    config = GenerationConfig(max_length=length + 6, **plain)
    assert torch.equal(model.generate(**inputs, generation_config=config), want)
    assert config.max_length == length + 6
    model.generation_config.max_length = length + 6
    assert torch.equal(model.generate(**inputs, **plain), want)
    assert model.generation_config.max_length == length + 6
    assert torch.equal(greedy(model, inputs, max_new_tokens=6), want)
    with pytest.raises(ValueError, match=rf"max_length: got {length}, wanted more than"):
        model.generate(**inputs, max_length=length, **plain)
    first = int(want[0, length])  # an answer that would be over at once
    ends = {"eos_token_id": first, "max_new_tokens": 6, **plain}
    assert model.generate(**inputs, **ends).shape[1] == length + 1
    longer = model.generate(**inputs, **ends, min_length=length + 3)
    assert longer.shape[1] >= length + 3
    assert longer.shape[1] == model.generate(**inputs, **ends, min_new_tokens=3).shape[1]


@every_name
def test_scores_and_states_come_of_the_compacted_prompt(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    out = greedy(
        model,
        inputs,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert torch.equal(out.sequences, greedy(model, inputs))
    assert len(out.scores) == len(out.logits) == 5
    seen = seen_by_decoder(model)
    greedy(model, inputs)
    assert out.hidden_states[0][0].shape[1] == lengths(seen)[0] < inputs["input_ids"].shape[1]
    beams = greedy(model, inputs, num_beams=2, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(beams.sequences, greedy(model, inputs, num_beams=2))
    # How likely each new token was is found at the end of the sequences, which is as it was.
    likely = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    steps = torch.stack([s.log_softmax(-1).max() for s in out.scores])
    assert far(likely[0], steps) < 1e-6


class Recorded(TextStreamer):
    def __init__(self, tokenizer: Any, **how: Any) -> None:
        super().__init__(tokenizer, **how)
        self.ids: list[Tensor] = []
        self.text = ""

    def put(self, value: Tensor) -> None:
        self.ids.append(value)
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text


@every_name
def test_a_streamer_gets_the_callers_prompt_first(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    tokenizer = processors.processor(name).tokenizer
    streamer, new = Recorded(tokenizer), Recorded(tokenizer, skip_prompt=True)
    out = greedy(model, inputs, streamer=streamer)
    greedy(model, inputs, streamer=new)
    assert torch.equal(streamer.ids[0], inputs["input_ids"])
    assert torch.equal(torch.cat([ids.flatten() for ids in streamer.ids]), out[0])
    assert new.text == tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
    # Text of the whole is text of its parts, where no byte is half a letter.
    assert streamer.text.startswith(tokenizer.decode(inputs["input_ids"][0]))


class Stops(StoppingCriteria):
    """Stops at a length of the ids it sees."""

    def __init__(self, length: int) -> None:
        self.length, self.seen = length, []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.seen.append(input_ids)
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


class Sees(LogitsProcessor):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(input_ids)
        return scores


@every_name
@pytest.mark.parametrize("beams", [1, 2])
def test_own_criteria_and_processors_see_the_callers_ids(name: str, beams: int) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    ids = inputs["input_ids"]
    length = ids.shape[1]
    stops, sees, allowed = Stops(length + 3), Sees(), []

    def allow(row: int, own: Tensor) -> list[int]:
        allowed.append(own)
        return [1, 2, 3, 4]

    out = greedy(
        model,
        inputs,
        num_beams=beams,
        stopping_criteria=[stops],
        logits_processor=[sees],
        prefix_allowed_tokens_fn=allow,
        max_new_tokens=8,
    )
    assert out.shape[1] == length + 3
    assert set(out[0, length:].tolist()) <= {1, 2, 3, 4}
    for seen in [*stops.seen, *sees.seen, *(row[None] for row in allowed)]:
        assert torch.equal(seen[:, :length], ids.expand(len(seen), -1))
    assert [seen.shape[1] - length for seen in sees.seen] == [0, 1, 2]
    most = StoppingCriteriaList([MaxLengthCriteria(length + 4)])
    plain = {k: v for k, v in inputs.items()}
    assert model.generate(**plain, stopping_criteria=most, do_sample=False,
                          max_new_tokens=9).shape[1] == length + 4  # fmt: skip


@every_name
def test_all_kept_is_as_unwrapped_however_it_is_generated(name: str) -> None:
    bare, model, inputs = processors.model(name), wrapped(name, max_tokens=PLENTY), prompt(name)
    ways: list[dict[str, Any]] = [
        {"do_sample": True, "temperature": 2.0, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"num_beams": 2},
        {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
    ]
    for how in ways:
        both = []
        for each in (bare, model):
            torch.manual_seed(3)
            both.append(greedy(each, dict(inputs), **how))
        assert torch.equal(*both), how


@every_name
def test_a_subset_is_the_same_however_it_is_generated(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    want = greedy(model, inputs)
    for how in ({"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 1}):
        assert torch.equal(greedy(model, inputs, **how), want), how
    assert torch.equal(greedy(model, inputs, cache=DynamicCache(config=model.config)), want)
    assert torch.equal(greedy(model, inputs, prefill_chunk_size=8), want)


@every_name
def test_assisted_decoding_says_the_same(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    want = greedy(model, inputs)
    for assistant in (processors.model(name, seed=1), wrapped(name, max_tokens=3)):
        assert torch.equal(greedy(model, inputs, assistant_model=assistant), want)


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl"])
def test_looking_up_the_prompt_says_the_same(name: str) -> None:
    """Where it fails on the unmodified model, as in Qwen2.5-VL, it fails here."""
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    assert torch.equal(greedy(model, inputs, prompt_lookup_num_tokens=2), greedy(model, inputs))


@every_name
def test_a_batch_of_prompts_without_mask_is_padded_as_generate_finds_it(name: str) -> None:
    if name == "internvl":
        pytest.skip("its processor makes no batches")
    model = wrapped(name, max_tokens=BUDGET)
    pad = model.generation_config.pad_token_id
    one, two = prompt(name), prompt(name, "And then, why?")
    both = batch([one, two], "left")
    both["input_ids"][both["attention_mask"] == 0] = pad
    want = greedy(model, both)
    del both["attention_mask"]
    assert torch.equal(greedy(model, both), want)
    for row, alone in zip(want, (one, two), strict=True):
        assert torch.equal(row[-5:], greedy(model, alone)[0, -5:])


@every_name
def test_unknown_arguments_are_refused_as_before(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    for each in (processors.model(name), model):
        with pytest.raises(ValueError, match=r"not used by the model: \['colour'\]"):
            each.generate(**inputs, colour="red")


@every_name
def test_what_transformers_reads_off_the_methods_is_as_before(name: str) -> None:
    bare, model = processors.model(name), wrapped(name, max_tokens=BUDGET)
    for method in ("forward", "generate"):
        own, before = getattr(model, method), getattr(bare, method)
        assert inspect.signature(own) == inspect.signature(before)
    assert "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    assert model._supports_logits_to_keep()


@every_name
def test_tuples_and_positional_arguments(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    with torch.no_grad():
        out = model(**inputs)
        parts = model(inputs["input_ids"], **rest, return_dict=False)
        last = model(**inputs, logits_to_keep=2)
    assert torch.equal(parts[0], out.logits)
    assert far(last.logits, out.logits[:, -2:]) < 1e-5
    cache = next(part for part in parts if hasattr(part, "get_seq_length"))
    with pytest.raises(ValueError, match="got that of a prompt whose visual tokens were cut"):
        model(inputs["input_ids"], cache=cache)


def test_indices_of_logits_to_keep_are_refused() -> None:
    model, inputs = wrapped("llava_onevision", max_tokens=BUDGET), prompt("llava_onevision")
    with pytest.raises(ValueError, match="logits_to_keep: got indices of ids"):
        model(**inputs, logits_to_keep=torch.tensor([3, 4]))


@every_name
def test_generate_builds_no_graph_and_works_in_training_mode(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    want = greedy(model, inputs)
    out = greedy(model.train(), inputs, return_dict_in_generate=True, output_logits=True)
    assert not out.logits[0].requires_grad
    assert torch.equal(out.sequences, want)
    assert model.training


@every_name
def test_text_alone_is_untouched(name: str) -> None:
    from asked import prompt_of

    bare, model = processors.model(name), wrapped(name, max_tokens=1)
    inputs = prompt_of(name, [{"role": "user", "content": "Hello"}], None)
    assert torch.equal(greedy(model, inputs), greedy(bare, inputs))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, bare(**inputs).logits)


@every_name
def test_an_exception_leaves_the_model_as_it_was(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    want = greedy(model, inputs)
    held = {k: copy.copy(v) for k, v in vars(model).items() if not k.startswith("_")}

    class Stopped(BaseException):
        pass

    def stop(*args: Any) -> None:
        raise Stopped

    for part in (model.get_decoder(), model.lm_head):
        handle = part.register_forward_pre_hook(stop)
        for call in (lambda: greedy(model, inputs), lambda: model(**inputs)):
            with pytest.raises(Stopped):
                call()
        handle.remove()
    assert vars(model).keys() - {"_forward_pre_hooks"} >= held.keys()
    assert torch.equal(greedy(model, inputs), want)
    bvllm.unwrap(model)
    assert torch.equal(greedy(model, inputs), greedy(processors.model(name), inputs))
