"""Learned stages on transformers' own models: gradients, soft choices, places, levels."""

from __future__ import annotations

from typing import Any

import asked
import numpy as np
import processors
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bvllm_adapters as bvllm
from bvllm_adapters.features import Selection
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.question import asking
from bvllm_transformers import prompt_text
from bvllm_transformers.placing import placed

SMALL = {"qformer_width": 16, "qformer_layers": 1, "qformer_heads": 2}
SAMPLED = {"sampler": "qformer", "projection": "mlp", "tokens_per_frame": 3}
NAMES = pytest.mark.parametrize("name", processors.PROCESSORS)
STAGES = pytest.mark.parametrize("stages", [{}, SAMPLED], ids=["selector", "selector and sampler"])


def learned(name: str, seed: int = 0, **how: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        given = {"selector": "learned", "num_frames": 3, "max_tokens": 9, **SMALL, **how}
        model = asked.wrapped(name, **given)
    prompt_text._readers[model] = prompt_text.reader(processors.processor(name))
    return model


def in_training(model: Any) -> Any:
    model.train().requires_grad_(False)
    tokenizer_of(model).requires_grad_(True)
    return model


def labelled(name: str, question: str = "What happens?") -> dict[str, Any]:
    inputs = asked.prompt(name, question)
    labels = inputs["input_ids"].clone()
    labels[:, :-6] = -100
    return {**inputs, "labels": labels}


def gradients(model: Any, inputs: dict[str, Any], seed: int = 5) -> dict[str, Tensor | None]:
    model.zero_grad()
    torch.manual_seed(seed)
    model(**inputs, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


class Fixed(nn.Module):
    """These frames, without training."""

    sees = reads_question = False

    def __init__(self, frames: Any) -> None:
        super().__init__()
        self.frames = torch.as_tensor(frames)

    def forward(
        self, cls: Tensor, question: str, *, seconds: Tensor, num_frames: int, generator: Any = None
    ) -> Selection:
        return Selection.whole(self.frames, len(cls))


class Soft(nn.Module):
    """These weights, as a selector that learns gives them."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(
        self, cls: Tensor, text_ids: Tensor, *, seconds: Tensor, generator: Any = None
    ) -> Selection:
        return Selection.of(self.weights)


def choices_of(model: Any) -> list[Selection]:
    """What is chosen from here on."""
    found: list[Selection] = []
    tokenizer_of(model).temporal_merger.register_forward_hook(
        lambda module, args, selection: found.append(selection)
    )
    return found


@STAGES
@NAMES
def test_gradients_reach_all_that_is_learned_through_a_frozen_host(
    name: str, stages: dict[str, Any]
) -> None:
    model, inputs = in_training(learned(name, **stages)), labelled(name)
    plain = gradients(model, inputs)
    for weight, gradient in plain.items():
        ours = weight.startswith("balanced_tokenizer.")
        assert (gradient is not None) == ours, weight
    assert not [n for n, g in plain.items() if g is not None and not bool(g.any())]
    newer = getattr(model, "activation_checkpointing_enable", None)  # its name from 5.23 or so on
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    again = gradients(model, inputs)
    for weight, gradient in plain.items():
        assert gradient is None or gradient.equal(again[weight]), weight
    # Other noise, other choices.
    other = gradients(model, inputs, seed=6)
    assert any(g is not None and not g.equal(other[n]) for n, g in again.items())


@NAMES
def test_in_evaluation_the_chosen_frames_are_read_as_any_others(name: str) -> None:
    model, inputs = learned(name, max_tokens=asked.PLENTY), asked.prompt(name)
    seen = choices_of(model)
    with torch.no_grad():
        logits = model(**inputs).logits
    frames = seen[0].frame
    fixed = asked.wrapped(name, selector=Fixed(frames), num_frames=len(frames))
    with torch.no_grad():
        assert logits.equal(fixed(**inputs).logits)
        assert logits.equal(model(**inputs).logits)


@NAMES
def test_straight_through_reads_whole_frames_in_training(name: str) -> None:
    model = in_training(learned(name, straight_through=True, max_tokens=asked.PLENTY))
    inputs, seen = labelled(name), choices_of(model)
    found = gradients(model, inputs)
    assert any(g is not None and bool(g.any()) for g in found.values())
    torch.manual_seed(5)
    loss = model(**inputs, use_cache=False).loss
    frames = seen[0].frame
    assert seen[0].weights.detach().amax(dim=1).allclose(torch.ones(len(frames)))
    fixed = asked.wrapped(name, selector=Fixed(frames), num_frames=len(frames))
    with torch.no_grad():
        wanted = fixed(**inputs, use_cache=False).loss
    torch.testing.assert_close(loss.detach(), wanted, rtol=0, atol=1e-5)


def test_a_support_limits_what_is_mixed() -> None:
    model = in_training(
        learned("qwen2_5_vl", selection_support=2, temperature=5.0, merge_threshold=1.0)
    )
    seen = choices_of(model)
    gradients(model, labelled("qwen2_5_vl"))
    tokenizer_of(model).frame_selector.support = None
    gradients(model, labelled("qwen2_5_vl"))
    limited, whole = (each.weights.detach() for each in seen)
    assert (limited > 0).sum(dim=1).tolist() == [2] * 3 and bool((whole > 0).all())


def given_to_decoder(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    seen = asked.seen_by_decoder(model)
    with torch.no_grad():
        model(**inputs)
    return seen[0]


def tokens_of(name: str, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor], Tensor]:
    """The unmodified model's (T P, D) tokens and levels, and their columns."""
    model = processors.model(name)
    given = given_to_decoder(model, inputs)
    token = model.config.image_token_id if name == "internvl" else model.config.video_token_id
    columns = (inputs["input_ids"][0] == token).nonzero().squeeze(1)
    levels = given.get("deepstack_visual_embeds") or []
    return given["inputs_embeds"][0, columns], list(levels), columns


@NAMES
def test_soft_choices_are_mixed_and_stand_at_their_main_frames(name: str) -> None:
    inputs = asked.prompt(name)
    tokens, levels, columns = tokens_of(name, inputs)
    tail = 1 if name == "llava_onevision" else 0
    groups = 8 if name in ("llava_onevision", "internvl") else 4
    each = (len(columns) - tail) // groups
    # The first two rows have one main frame, the third none next to it.
    weights = torch.zeros(3, groups)
    weights[0, :2] = torch.tensor([0.75, 0.25])
    weights[1, [0, 3]] = torch.tensor([0.625, 0.375])
    weights[2, [2, 3]] = torch.tensor([0.25, 0.75])
    model = learned(
        name, merge_threshold=1.0, max_tokens=asked.PLENTY, num_frames=3, evaluation="soft"
    )
    tokenizer_of(model).frame_selector = Soft(weights)
    given = given_to_decoder(model, inputs)
    mixed = torch.einsum(
        "kt,tpd->kpd", weights, tokens[: groups * each].unflatten(0, (groups, each))
    )
    embeds = given["inputs_embeds"][0]
    found = [int((embeds - row).abs().sum(dim=1).argmin()) for row in mixed.flatten(0, 1)]
    assert found == sorted(set(found))  # each at a place of its own, in order
    torch.testing.assert_close(embeds[found], mixed.flatten(0, 1), rtol=0, atol=1e-6)
    for ours, level in zip(given.get("deepstack_visual_embeds") or [], levels, strict=True):
        wanted = torch.einsum("kt,tpd->kpd", weights, level.unflatten(0, (groups, each)))
        torch.testing.assert_close(ours, wanted.flatten(0, 1), rtol=0, atol=1e-6)
    if given.get("position_ids") is not None and given["position_ids"].ndim == 3:
        # The second stands at the next group, as the first takes all places of the main one.
        whole = given_to_decoder(
            asked.wrapped(name, selector=Fixed([0, 1, 3]), num_frames=3), inputs
        )
        assert given["position_ids"].equal(whole["position_ids"])


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_each_token_has_a_placeholder_of_its_own(data: st.DataObject) -> None:
    groups, each = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    count = data.draw(st.integers(0, groups * each))

    def numbers(most: int) -> list[int]:
        return data.draw(st.lists(st.integers(0, most), min_size=count, max_size=count))

    frame = torch.tensor(sorted(numbers(groups - 1)), dtype=torch.int64)
    place = torch.tensor(numbers(each - 1), dtype=torch.int64)
    at, inside = placed(frame, place, groups, each)
    found, wanted = (at * each + inside).tolist(), (frame * each + place).tolist()
    assert all(0 <= i < each for i in inside.tolist())
    assert found == sorted(set(found)) and all(0 <= i < groups * each for i in found)
    if wanted == sorted(set(wanted)):
        assert found == wanted
    for i, (ours, own) in enumerate(zip(found, wanted, strict=True)):
        after_it = i > 0 and ours == found[i - 1] + 1
        before_it = ours == (found[i + 1] if i + 1 < count else groups * each) - 1
        assert ours == own or after_it or before_it


def test_more_tokens_than_places_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens: got 5, wanted 4 at most"):
        placed(torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1, 0, 1, 0]), 2, 2)


@STAGES
@NAMES
def test_more_soft_choices_than_frames_fit_into_the_prompt(
    name: str, stages: dict[str, Any]
) -> None:
    own = {"num_frames": 40, "merge_threshold": 1.0, "max_tokens": None, "temperature": 1.0}
    model = in_training(learned(name, **{**own, **stages}))
    frames = asked.FRAMES[:4]
    inputs = asked.prompt(name, frames=frames)
    whole = inputs["input_ids"].shape[1]
    seen, made = choices_of(model), asked.seen_by_decoder(model)
    model(**inputs, use_cache=False)
    groups = seen[0].num_frames
    assert len(seen[0]) > groups
    assert asked.lengths(made)[0] <= whole
    # As many as there are places: none is lost.
    if not stages:
        assert asked.lengths(made)[0] == whole


@NAMES
def test_a_sampler_of_more_tokens_than_a_frame_has_places_for_is_refused(name: str) -> None:
    model = learned(name, **{**SAMPLED, "tokens_per_frame": 99, "max_tokens": None})
    with pytest.raises(ValueError, match=r"tokens_per_frame: got 99, wanted \d+ at most"):
        model(**asked.prompt(name))
    with pytest.raises(ValueError, match=r"tokens_per_frame: got 99, wanted \d+ at most"):
        bvllm.ask(model, asked.FRAMES, "What?", processor=processors.processor(name))


@NAMES
def test_sampled_tokens_stand_at_the_first_places_of_their_frames(name: str) -> None:
    model, inputs = learned(name, max_tokens=None, **SAMPLED), asked.prompt(name)
    columns = tokens_of(name, inputs)[2]
    seen = choices_of(model)
    given = given_to_decoder(model, inputs)
    groups = seen[0].num_frames
    each = len(columns) // groups
    if given.get("position_ids") is not None and given["position_ids"].ndim == 3:
        fixed = asked.wrapped(name, selector=Fixed(seen[0].frame), num_frames=len(seen[0]))
        positions = given_to_decoder(fixed, inputs)["position_ids"][-3:]
        ours = given["position_ids"][-3:]
        # The visual tokens of the first chosen frame, which stand where its first ones stood.
        begin = int(columns[0])
        assert ours[:, 0, begin : begin + 3].equal(positions[:, 0, begin : begin + 3])
    assert given["inputs_embeds"].shape[1] == inputs["input_ids"].shape[1] - _gone(
        name, inputs, seen[0], each
    )


def _gone(name: str, inputs: dict[str, Any], selection: Selection, each: int) -> int:
    """Ids that go when of each chosen frame three tokens stay: of the others all, and their text
    where they have one."""
    fixed = asked.wrapped(name, selector=Fixed(selection.frame), num_frames=len(selection))
    left = given_to_decoder(fixed, inputs)["inputs_embeds"].shape[1]
    return inputs["input_ids"].shape[1] - left + (each - 3) * len(selection)


def test_sampled_tokens_have_no_further_levels() -> None:
    """They are read as the language model reads tokens that it gets as embeddings."""
    model, inputs = learned("qwen3_vl", **SAMPLED), asked.prompt("qwen3_vl")
    given = given_to_decoder(model, inputs)
    assert all(not level.any() for level in given["deepstack_visual_embeds"])
    with torch.no_grad():
        logits = model(**inputs).logits
        plain = processors.model("qwen3_vl")
        hidden = plain.get_decoder()(
            inputs_embeds=given["inputs_embeds"],
            position_ids=given["position_ids"],
            attention_mask=given["attention_mask"],
        ).last_hidden_state
        assert plain.lm_head(hidden).equal(logits)


@STAGES
@NAMES
def test_batches_beams_and_half_precision(name: str, stages: dict[str, Any]) -> None:
    model = learned(name, **stages)
    prompts = [asked.prompt(name), asked.prompt(name, "Is it day, or is it night by now?")]
    many = asked.batch(prompts, "left")
    wanted = [asked.greedy(model, prompt, num_beams=2)[0, -5:] for prompt in prompts]
    found = asked.greedy(model, many, num_beams=2)[:, -5:]
    assert [row.tolist() for row in found] == [row.tolist() for row in wanted]
    model.bfloat16()
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in prompts[0].items()}
    with torch.no_grad():
        assert model(**half).logits.isfinite().all()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_images_beside_a_video_are_sampled_too(name: str) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    content = [
        {"type": "image", "image": picture},
        {"type": "video", "video": asked.FRAMES},
        {"type": "text", "text": "Are both alike?"},
    ]
    inputs = asked.prompt_of(name, [{"role": "user", "content": content}])
    for stages in ({}, SAMPLED):
        model = in_training(learned(name, max_tokens=7, **stages))
        seen = asked.seen_by_decoder(model)
        gradients(model, {**inputs, "labels": inputs["input_ids"]})
        config = model.config
        visual = [config.image_token_id, config.video_token_id]
        words = int((~torch.isin(inputs["input_ids"], torch.tensor(visual))).sum())
        assert asked.lengths(seen)[0] <= words + 7
        assert len(asked.greedy(model.eval(), inputs)[0]) == inputs["input_ids"].shape[1] + 5


def test_the_question_is_read_from_the_prompt_and_answers_are_not() -> None:
    model = learned("qwen2_5_vl")
    asked_ids: list[Tensor] = []
    tokenizer_of(model).frame_selector.register_forward_hook(
        lambda module, args, out: asked_ids.append(args[1])
    )
    question = "What happens to the rabbit?"
    with asking(question), torch.no_grad():
        model(**asked.prompt("qwen2_5_vl", "something else"))
    processor = processors.processor("qwen2_5_vl")
    turns = processors.messages(asked.FRAMES, question)
    turns.append({"role": "assistant", "content": [{"type": "text", "text": "It wakes up."}]})
    inputs = asked.prompt_of("qwen2_5_vl", turns)
    ids = inputs["input_ids"]
    labels = torch.full_like(ids, -100)
    answer = torch.tensor(processor.tokenizer("It wakes up.")["input_ids"])
    start = next(i for i in range(ids.shape[1]) if ids[0, i : i + len(answer)].equal(answer))
    labels[0, start : start + len(answer)] = answer
    with torch.no_grad():
        model(**inputs, labels=labels)
    wanted = tokenizer_of(model).question_tokenizer(question)
    assert [each.tolist() for each in asked_ids] == [wanted.tolist()] * 2


@NAMES
def test_soft_choices_are_asked_too(name: str) -> None:
    how = {"evaluation": "soft", "merge_threshold": 1.0, "temperature": 5.0, "num_frames": 40}
    model = learned(name, **{**how, "max_tokens": None})
    own = {"processor": processors.processor(name), "max_new_tokens": 3}
    video = bvllm.open_video(model, asked.FRAMES, processor=own.pop("processor"))
    found = video.ask("What happens?", **own)
    features = video.features
    places = features.num_frames * features.layout.patches_per_frame
    assert found.trace.num_tokens == places + features.beside
    less = video.ask("What happens?", max_tokens=7, **own)
    assert less.trace.num_tokens == 7
    both = video.ask(["What happens?", "And where?"], **own)
    assert both[0].text == found.text
