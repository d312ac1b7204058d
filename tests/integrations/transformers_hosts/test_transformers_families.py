"""Every family under a budget: all kept is the model to the bit; what is left of a video is what
the unmodified model makes of that."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from budgets import (
    KEEPS_TIMES,
    PLENTY,
    Picks,
    always_spliced,
    count,
    forward,
    greedy,
    in_one_prompt,
    stacked,
    wrapped,
)
from prompts import PIXELS, batch, group_of, longer, placeholders, take
from references import STATEFUL, TIME_IN_TOWER, embedded, kept, masked, native
from tiny import FAMILIES, Inputs, family
from torch import Tensor

every_family = pytest.mark.parametrize("name", FAMILIES)
ROUNDS = {"minicpm_ocr": 3e-4}  # padded beside alone, measured 1.0e-4; recurrent layers
NO_BEAMS = {"glm5_next"}  # of a video, unmodified either
ONE_VIDEO = {"instructblipvideo", "nemotron_h_omni", "qwen2_5_omni"}  # their processors take one


@every_family
def test_all_kept_is_the_model(name: str) -> None:
    one = family(name)
    model, inputs = one.shared_model(), one.inputs()
    labels = {**inputs, "labels": inputs["input_ids"]}
    logits, ids = forward(model, inputs), greedy(model, inputs)
    with torch.no_grad():
        loss = model(**labels).loss
    keys = list(model.state_dict())
    with wrapped(model, max_tokens=PLENTY):
        assert forward(model, inputs).equal(logits)
        with always_spliced():
            assert forward(model, inputs).equal(logits)
            assert greedy(model, inputs).equal(ids)
            with torch.no_grad():
                assert model(**labels).loss.equal(loss)
        text = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
        if name != "instructblipvideo":  # it wants pixels, unmodified too
            said = forward(model, text)
    assert list(model.state_dict()) == keys
    assert forward(model, inputs).equal(logits)
    if name != "instructblipvideo":
        assert forward(model, text).equal(said)


@every_family
def test_all_kept_in_bfloat16(name: str) -> None:
    one = family(name)
    model = one.model(dtype=torch.bfloat16)
    inputs = {
        key: value.bfloat16() if key in PIXELS else value for key, value in one.inputs().items()
    }
    logits = forward(model, inputs)
    with wrapped(model, max_tokens=PLENTY), always_spliced():
        assert forward(model, inputs).equal(logits)


@every_family
@pytest.mark.parametrize("groups", [1, 3])
def test_frames_left_are_the_model_that_is_given_them(name: str, groups: int) -> None:
    one = family(name)
    model = one.shared_model()
    inputs = longer(one, one.inputs(), 5, seed=1)
    size = count(inputs["input_ids"], one)
    tail = one.frame_of_placeholder.count(-1)
    each = (size - tail) // 5
    with wrapped(model, num_frames=groups, max_tokens=groups * each + tail, selector="uniform"):
        logits = forward(model, inputs)
        answer = greedy(model, inputs)
    chosen = [2] if groups == 1 else [0, 2, 4]
    of = group_of(one, inputs)
    if name in KEEPS_TIMES:
        frame = of[placeholders(inputs)]
        choice = torch.isin(frame, torch.tensor(chosen)) | (frame < 0)
        reference = masked(model, inputs, kept(inputs, choice))
    elif name in TIME_IN_TOWER:
        reference = masked(model, inputs, (of < 0) | torch.isin(of, torch.tensor(chosen)))
    else:
        assert logits.equal(native(model, one, inputs, chosen))
        shorter = take(one, inputs, chosen)
        new = slice(inputs["input_ids"].shape[1], None)
        assert answer[:, new].equal(greedy(model, shorter)[:, shorter["input_ids"].shape[1] :])
        return
    torch.testing.assert_close(logits, reference, rtol=0, atol=4e-5)


@every_family
@pytest.mark.parametrize("more", [0, 5])
def test_tokens_left_are_the_others_masked_out(name: str, more: int) -> None:
    """Each frame keeps its text, as a token of each is left."""
    one = family(name)
    model, inputs = one.shared_model(), one.inputs()
    tail = one.frame_of_placeholder.count(-1)
    each = (len(one.frame_of_placeholder) - tail) // one.groups
    budget = one.groups + tail + more
    stage = Picks(seed=more)
    with wrapped(model, num_frames=one.groups, max_tokens=budget, selector="uniform"):
        model.balanced_tokenizer.budget_merger = stage
        logits = forward(model, inputs)
        answer = greedy(model, inputs, max_new_tokens=1)
    choice = torch.zeros(len(one.frame_of_placeholder), dtype=torch.bool)
    for frame, place in stage.taken:
        choice[frame * each + place] = True
    choice[len(choice) - tail :] = True
    assert int(choice.sum()) == budget == count(inputs["input_ids"], one) - int((~choice).sum())
    reference = embedded if name in STATEFUL else masked
    expected = reference(model, inputs, kept(inputs, choice))
    torch.testing.assert_close(logits, expected, rtol=0, atol=4e-5)
    assert answer[0, -1] == logits[0, -1].argmax()


def prompts_of(name: str) -> list[Inputs]:
    """Two of unlike lengths."""
    one = family(name)
    first = one.inputs()
    second = longer(one, first, one.groups if stacked(one) else 2, seed=5)
    if stacked(one):  # clips of a batch are of one length; the words behind are not
        shape = second["input_ids"].shape
        second = {
            key: torch.cat([value, value[:, -3:]], 1) if value.shape == shape else value
            for key, value in second.items()
        }
    return [first, second]


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_prompts(name: str, side: str) -> None:
    one, prompts = family(name), prompts_of(name)
    model = one.shared_model()
    with wrapped(model, max_tokens=7):
        alone = [forward(model, prompt)[0] for prompt in prompts]
        together = forward(model, batch(one, prompts, side))
    for row, single in zip(together, alone, strict=True):
        row = row[-len(single) :] if side == "left" else row[: len(single)]
        torch.testing.assert_close(row, single, rtol=0, atol=ROUNDS.get(name, 3e-5))


@every_family
def test_beams_of_a_batch_are_those_of_its_prompts(name: str) -> None:
    one, prompts = family(name), prompts_of(name)
    model = one.shared_model()
    how: Any = {"num_beams": 3, "num_return_sequences": 2}
    together = batch(one, prompts)
    if name in NO_BEAMS:
        with pytest.raises(ValueError):
            greedy(model, prompts[0], **how)
        return
    width = together["input_ids"].shape[1]
    with wrapped(model, max_tokens=7):
        alone = [greedy(model, prompt, **how) for prompt in prompts]
        found = greedy(model, together, **how)
    assert found.shape == (4, width + 4)
    for i, (prompt, single) in enumerate(zip(prompts, alone, strict=True)):
        new = prompt["input_ids"].shape[1]
        assert found[2 * i : 2 * i + 2, width:].equal(single[:, new:])


@every_family
def test_two_videos_in_one_prompt(name: str) -> None:
    if name in ONE_VIDEO:
        pytest.skip("its processor takes one")
    one, (first, second) = family(name), prompts_of(name)
    model = one.shared_model()
    inputs = in_one_prompt(one, first, second)
    logits = forward(model, inputs)
    with wrapped(model, max_tokens=PLENTY), always_spliced():
        assert forward(model, inputs).equal(logits)
    seen: dict[str, Tensor] = {}
    with wrapped(model, max_tokens=9):
        handle = model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
        )
        forward(model, inputs)
        handle.remove()
    words = inputs["input_ids"].shape[1] - count(inputs["input_ids"], one)
    assert seen["inputs_embeds"].shape[1] <= words + 9


@pytest.mark.parametrize("name", ["gemma4", "molmo2", "ovis2", "qwen3_vl", "instructblipvideo"])
def test_copies_pickles_and_threads(name: str) -> None:
    one, prompts = family(name), prompts_of(name)
    model = one.model(seed=9)  # which no other test has called
    with wrapped(model, max_tokens=7):
        # Before its first forward(): unmodified models that record what passes cannot be pickled
        # after it either.
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        alone = [forward(model, prompt) for prompt in prompts]
        for other in others:
            assert forward(other, prompts[0]).equal(alone[0])
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda prompt: forward(model, prompt), prompts * 3))
        assert all(got.equal(want) for got, want in zip(both, alone * 3, strict=True))
