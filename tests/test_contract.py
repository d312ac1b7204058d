"""The contract, line by line, over videos of 1 to 400 frames and budgets from 1 up."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bvllm_adapters as bvllm
from bvllm_adapters import testing
from bvllm_adapters.testing.strategies import DTYPES

WIDTH = 16  # of the features that the strategies draw
PATCHES = 4
dtypes = st.sampled_from(DTYPES)


def draw_batch(data, dtype, most=4):
    """One to four videos of any length with their questions."""
    count = data.draw(st.integers(1, most))
    videos = [data.draw(testing.frame_features(width=WIDTH, dtype=dtype)) for _ in range(count)]
    return videos, [data.draw(testing.questions()) for _ in range(count)]


@given(st.data(), dtypes)
def test_budget_holds_and_is_used_for_each_prompt(data, dtype):
    """Lines 1 and 2."""
    tokenizer = data.draw(testing.tokenizers(dtype=dtype))
    videos, questions = draw_batch(data, dtype)
    prompts = [data.draw(st.integers(0, 1)) for _ in videos]
    max_tokens = data.draw(testing.budgets(200))
    free = tokenizer(videos, questions, prompts=prompts, max_tokens=10**9)
    bound = tokenizer(videos, questions, prompts=prompts, max_tokens=max_tokens)
    for prompt in set(prompts):
        of_prompt = [i for i, p in enumerate(prompts) if p == prompt]
        testing.check_budget(
            [bound[i] for i in of_prompt],
            max_tokens,
            available=sum(len(free[i]) for i in of_prompt),
        )
        planned = bvllm.plan(
            tokenizer.config, [videos[i].num_frames for i in of_prompt], max_tokens=max_tokens
        )
        assert sum(len(bound[i]) for i in of_prompt) <= planned
        # As long as there is a token for each visual input, none goes without.
        if max_tokens >= len(of_prompt):
            assert all(len(bound[i]) > 0 for i in of_prompt)


@given(st.data(), dtypes)
def test_a_budget_that_is_not_reached_changes_nothing(data, dtype):
    """Line 1."""
    tokenizer = data.draw(testing.tokenizers(dtype=dtype))
    (video,), (question,) = draw_batch(data, dtype, most=1)
    testing.check_no_budget_is_a_no_op(tokenizer, video, question)


@given(st.data())
def test_with_fewer_tokens_than_frames_the_most_chosen_frames_stay(data):
    """Line 2."""
    tokenizer = data.draw(testing.tokenizers(max_tokens=None))
    (video,), (question,) = draw_batch(data, torch.float32, most=1)
    chosen = tokenizer([video], [question])[0].selection
    max_tokens = data.draw(st.integers(1, len(chosen)))
    tokens = tokenizer([video], [question], max_tokens=max_tokens)[0]
    kept = tokens.selection.size[tokens.slot]
    lost = [float(s) for row, s in enumerate(chosen.size) if row not in tokens.slot.tolist()]
    assert len(tokens) == max_tokens == len(set(tokens.slot.tolist()))
    assert not lost or float(kept.min()) >= max(lost)


@given(st.data(), dtypes)
def test_time_order_and_selection(data, dtype):
    """Lines 3 and 4."""
    tokenizer = data.draw(testing.tokenizers(dtype=dtype))
    videos, questions = draw_batch(data, dtype)
    for tokens in tokenizer(videos, questions):
        testing.check_time_order(tokens)
        testing.check_selection(tokens.selection, choices=tokenizer.config.num_frames)
        assert tokens.size.dtype == torch.float32
        assert tokens.tokens.dtype == dtype


@given(st.data(), dtypes)
def test_training_selects_by_the_same_rules(data, dtype):
    """Lines 3 and 4 with soft, noisy choices; line 5: the generator decides the noise."""
    tokenizer = data.draw(testing.tokenizers(dtype=dtype)).train()
    videos, questions = draw_batch(data, dtype, most=2)
    seed = data.draw(st.integers(0, 2**31))

    def run():
        return tokenizer(videos, questions, generator=torch.Generator().manual_seed(seed))

    testing.check_deterministic(run)
    for tokens in run():
        testing.check_time_order(tokens)
        testing.check_selection(tokens.selection, choices=tokenizer.config.num_frames)


@given(st.data(), dtypes, testing.budgets(60))
def test_merging_into_a_budget_moves_no_mass(data, dtype, max_tokens):
    """Line 4: as BudgetMerger computes in float32, only the last rounding is the dtype's."""
    frames, room = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 33))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    before = torch.randn(frames, room, 8, generator=rng).to(dtype)
    after = bvllm.BudgetMerger()(before, max_tokens)
    testing.check_budget([after], max_tokens, available=frames * room)
    testing.check_mass(before, after, tolerance=1e-5 if dtype == torch.float32 else 2e-2)
    testing.check_time_order(after)


@given(st.data(), dtypes)
def test_evaluation_is_deterministic(data, dtype):
    """Line 5."""
    tokenizer = data.draw(testing.tokenizers(dtype=dtype))
    videos, questions = draw_batch(data, dtype)
    testing.check_deterministic(lambda: tokenizer(videos, questions))


@given(st.data())
def test_a_sample_does_not_depend_on_its_batch(data):
    """Line 6, with and without a budget to merge into."""
    tokenizer = data.draw(testing.tokenizers())
    videos, questions = draw_batch(data, torch.float32)
    testing.check_independent_of_batch(tokenizer, videos, questions)


@given(st.data(), st.integers(1, 7))
def test_a_sample_does_not_depend_on_chunks(data, chunk_size):
    """Line 6."""
    tokenizer = data.draw(testing.tokenizers())
    videos, questions = draw_batch(data, torch.float32, most=2)
    chunked = copy.deepcopy(tokenizer)
    chunked.spatial_sampler.chunk_size = chunk_size
    for whole, parts in zip(tokenizer(videos, questions), chunked(videos, questions), strict=True):
        assert torch.allclose(whole.tokens, parts.tokens, atol=1e-5)


@given(st.data())
def test_permuting_frames_permutes_scores(data):
    """Line 7."""
    selector = data.draw(testing.tokenizers(time_encoding=False)).frame_selector
    video = data.draw(testing.frame_features(width=WIDTH))
    text = torch.tensor([101, 2054, 102])
    order = torch.randperm(
        video.num_frames, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    scores = selector.scores(video.cls, text)
    assert torch.allclose(selector.scores(video.cls[order], text), scores[:, order], atol=1e-4)


@given(st.data(), dtypes)
def test_an_image_skips_selection_and_keeps_the_budget(data, dtype):
    """Line 8."""
    tokenizer = data.draw(testing.tokenizers(dtype=dtype, max_tokens=None))
    image = data.draw(testing.frame_features(width=WIDTH, max_frames=1, dtype=dtype))
    calls = []
    handle = tokenizer.frame_selector.register_forward_hook(lambda *_: calls.append(1))
    tokens = tokenizer([image], [""])[0]
    handle.remove()
    assert not calls
    assert len(tokens) == tokenizer.config.tokens_per_frame
    assert tokens.frame.unique().tolist() == [0]
    assert len(tokenizer([image], [""], max_tokens=1)[0]) == 1


@given(st.data(), testing.questions(), testing.questions())
def test_one_question_does_not_change_anothers_tokens(data, first, second):
    """Line 6: neither does the padding that a longer neighbour brings."""
    tokenizer = data.draw(testing.tokenizers())
    video = data.draw(testing.frame_features(width=WIDTH, max_frames=40))
    alone = tokenizer([video], [first])[0]
    beside = tokenizer([video, video], [first, second])[0]
    assert torch.equal(alone.frame, beside.frame)
    assert torch.allclose(alone.tokens, beside.tokens, atol=1e-5)


@given(st.data(), testing.budgets(60))
def test_scores_and_sizes_are_float32_in_a_bfloat16_model(data, max_tokens):
    """Line 11."""
    tokenizer = data.draw(testing.tokenizers(dtype=torch.bfloat16))
    video = data.draw(testing.frame_features(width=WIDTH, dtype=torch.bfloat16, min_frames=2))
    assert (
        tokenizer.frame_selector.scores(video.cls, torch.tensor([101]), seconds=video.seconds).dtype
        == torch.float32
    )
    tokens = tokenizer([video], ["what?"], max_tokens=max_tokens)[0]
    assert tokens.size.dtype == tokens.selection.weights.dtype == torch.float32


@given(st.data(), dtypes)
def test_a_saved_tokenizer_gives_the_same_bits(tmp_path_factory, data, dtype):
    """Line 12, for the tokenizer alone; hosts are tested with theirs."""
    tokenizer = data.draw(testing.tokenizers(dtype=dtype))
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(folder)
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    again = bvllm.BalancedTokenizer.from_pretrained(folder)
    assert again.config == tokenizer.config and not again.training
    videos, questions = draw_batch(data, dtype, most=2)
    for before, after in zip(tokenizer(videos, questions), again(videos, questions), strict=True):
        assert torch.equal(before.tokens, after.tokens)


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_a_budget_below_one_is_refused_when_the_config_is_made(max_tokens):
    """Line 2."""
    with pytest.raises(ValueError, match=f"max_tokens: got {max_tokens}, wanted an int >= 1"):
        bvllm.BalancedTokenizerConfig(max_tokens=max_tokens)


def test_the_checks_see_what_is_wrong():
    """A rule that accepts everything guards nothing: each is shown a broken result."""
    good = bvllm.BudgetMerger()(torch.randn(3, 4, 8), 7)
    with pytest.raises(AssertionError, match="over a budget"):
        testing.check_budget([good], 6)
    with pytest.raises(AssertionError, match="wanted 8"):
        testing.check_budget([good], 8, available=12)
    with pytest.raises(AssertionError, match="out of order"):
        testing.check_time_order(dataclasses.replace(good, slot=good.slot.flip(0)))
    with pytest.raises(AssertionError, match="places out of order"):
        testing.check_time_order(dataclasses.replace(good, place=good.place.flip(0)))
    with pytest.raises(AssertionError, match="places out of order"):
        testing.check_time_order(dataclasses.replace(good, place=torch.zeros_like(good.place)))
    with pytest.raises(AssertionError, match="sizes sum"):
        testing.check_mass(
            torch.randn(3, 4, 8), dataclasses.replace(good, size=torch.ones_like(good.size))
        )
    with pytest.raises(AssertionError, match="mass"):
        testing.check_mass(torch.randn(3, 4, 8), good)
    with pytest.raises(AssertionError, match="rows sum"):
        testing.check_selection(bvllm.Selection(torch.rand(2, 3) + 1, torch.ones(2)))
    with pytest.raises(AssertionError, match="choices"):
        testing.check_selection(bvllm.Selection.everything(3), choices=4)
    with pytest.raises(AssertionError, match="between two calls"):
        testing.check_deterministic(lambda: [good.with_tokens(torch.randn_like(good.tokens))])
