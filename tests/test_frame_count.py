from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bvllm_adapters as bvllm
from bvllm_adapters import FrameFeatures, testing
from bvllm_adapters.frame_count import (
    ROUNDING,
    FrameCount,
    count_by_gap,
    count_by_mass,
    frame_relevance,
    most_relevant,
)

WIDTH = 16
criteria = st.sampled_from(["mass", "gap"])


@st.composite
def score_matrices(draw, scales=(0.0, 1e-5, 0.3, 1.0, 10.0, 1e4), ties=True):
    """(K, T) scores of 1 to 8 queries and 1 to 60 frames, flat to very sharp, often with ties."""
    queries, frames = draw(st.integers(1, 8)), draw(st.integers(1, 60))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(queries, frames, generator=rng)
    if ties and draw(st.booleans()):
        scores = scores.round()
    return scores * draw(st.sampled_from(scales))


def moments(count, queries, *, score=9.0, noise=0.5, frames=3600, seed=0):
    """Scores of an hour in which `count` frames are relevant, and where they are."""
    rng = torch.Generator().manual_seed(seed)
    scores = noise * torch.randn(queries, frames, generator=rng)
    relevant = torch.randperm(frames, generator=rng)[:count].sort().values
    scores[:, relevant] += score
    return scores, relevant


@given(score_matrices(), criteria, st.integers(1, 70), st.integers(1, 70), st.floats(0.01, 1.0))
def test_frames_are_whole_distinct_in_time_order_and_within_the_limits(scores, by, a, b, mass):
    count = FrameCount(by=by, least=min(a, b), most=max(a, b), mass=mass)
    selection = count.select(scores)
    queries, frames = scores.shape
    assert min(min(a, b), frames) <= len(selection) <= min(max(a, b), frames)
    assert selection.weights.shape == (len(selection), frames)
    assert sorted(set(selection.weights.unique().tolist()) | {0.0}) == [0, 1]
    assert bool((selection.frame.diff() > 0).all())
    testing.check_selection(selection, choices=queries)
    assert bool((selection.size > 0).all())
    assert torch.isfinite(frame_relevance(scores)).all()
    merged = bvllm.TemporalMerger()(selection)
    assert torch.equal(merged.weights, selection.weights)
    assert torch.equal(merged.size, selection.size)
    again = count.select(scores)
    assert torch.equal(again.weights, selection.weights)
    assert torch.equal(again.size, selection.size)


@given(score_matrices(), criteria, st.integers(1, 70), st.integers(1, 70))
def test_the_most_relevant_frames_are_chosen(scores, by, a, b):
    selection = FrameCount(by=by, least=min(a, b), most=max(a, b)).select(scores)
    relevance = frame_relevance(scores)
    others = torch.ones(len(relevance), dtype=torch.bool).scatter(0, selection.frame, False)
    if bool(others.any()):
        assert float(relevance[selection.frame].min()) >= float(relevance[others].max())
    # Their sizes rank them as well, so that a smaller budget keeps the best.
    by_size = selection.frame[selection.size.argsort(descending=True, stable=True)]
    assert bool((relevance[by_size].diff() < 1e-5).all()) or float(selection.size.min()) < 1e-30


@given(score_matrices())
def test_relevance_is_the_share_of_noisy_choices_against_chance(scores):
    relevance = frame_relevance(scores)
    share = torch.softmax(scores.double(), dim=1).mean(dim=0)
    assert torch.allclose(relevance.double().exp() / scores.shape[1], share, atol=1e-5)
    # A constant of a query's scores changes no choice.
    shifted = scores + torch.arange(len(scores))[:, None] * 8
    assert torch.allclose(frame_relevance(shifted), relevance, rtol=1e-4, atol=1e-4)


def test_relevance_is_what_training_draws():
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    drawn = torch.zeros(5)
    rng = torch.Generator().manual_seed(1)
    for _ in range(4000):
        noise = -torch.log(-torch.log(torch.rand(3, 5, generator=rng)))
        drawn += torch.bincount(((scores + noise) / 0.1).argmax(dim=1), minlength=5)
    assert torch.allclose(drawn / 12000, frame_relevance(scores).exp() / 5, atol=0.02)


@given(score_matrices(), st.floats(0.01, 1.0))
def test_mass_is_held_by_as_few_frames_as_can_be(scores, mass):
    relevance = frame_relevance(scores)
    count = count_by_mass(relevance, mass)
    beyond = relevance.double().expm1()
    beyond = beyond[beyond > ROUNDING].sort(descending=True).values
    if not len(beyond):
        assert count == 1
        return
    wanted, slack = mass * float(beyond.sum()), 1e-5 * float(beyond.sum())
    assert float(beyond[:count].sum()) >= wanted - slack
    assert float(beyond[: count - 1].sum()) < wanted + slack


@given(score_matrices())
def test_the_gap_is_the_largest_drop(scores):
    relevance = frame_relevance(scores)
    ranked = relevance.double().sort(descending=True).values
    drops = (ranked[:-1] - ranked[1:]).tolist()
    count = count_by_gap(relevance)
    if max(drops, default=0.0) < ROUNDING:
        assert count == 1
    else:
        rounding = 1e-6 * float(ranked.abs().max())
        assert drops[count - 1] >= max(drops) - rounding
        assert all(drop < drops[count - 1] + rounding for drop in drops[: count - 1])


@given(score_matrices(scales=(0.3, 1.0, 5.0), ties=False), criteria, st.integers(0, 2**31))
def test_permuting_frames_permutes_the_choice(scores, by, seed):
    count = FrameCount(by=by, least=2, most=30)
    order = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(seed))
    chosen = count.select(scores).frame
    moved = order[count.select(scores[:, order]).frame]
    assert moved.sort().values.tolist() == chosen.tolist()


@pytest.mark.parametrize("queries", [4, 32])
@pytest.mark.parametrize("relevant", [1, 2, 4, 8, 16, 32, 64, 100])
def test_the_number_of_frames_follows_the_number_of_moments(queries, relevant):
    scores, where = moments(relevant, queries)
    gap = FrameCount(by="gap", least=1, most=512).select(scores)
    assert gap.frame.tolist() == where.tolist()
    mass = FrameCount(by="mass", least=1, most=512, mass=0.9).select(scores)
    assert 0.8 * relevant - 1 <= len(mass) <= relevant
    assert set(mass.frame.tolist()) <= set(where.tolist())


@pytest.mark.parametrize("by", ["mass", "gap"])
def test_a_limit_that_cuts_through_the_relevant_frames_is_used_up(by):
    scores, where = moments(100, 32)
    selection = FrameCount(by=by, least=1, most=40).select(scores)
    assert len(selection) == 40
    assert set(selection.frame.tolist()) <= set(where.tolist())
    one, _ = moments(1, 32)
    assert len(FrameCount(by=by, least=6, most=40).select(one)) == 6


def test_at_training_s_temperature_it_would_not():
    """Why relevance takes the scores as they are."""
    scores, _ = moments(100, 4)
    assert count_by_mass(frame_relevance(scores), 0.9) > 80
    assert count_by_mass(frame_relevance(scores / 0.1), 0.9) < 15


def test_chance_would_outweigh_a_single_moment_in_an_hour():
    """Why "mass" counts what is beyond chance."""
    relevance = frame_relevance(moments(1, 4, score=8.0)[0])
    assert count_by_mass(relevance, 0.9) == 1
    held = torch.softmax(relevance, dim=0).sort(descending=True).values.cumsum(dim=0)
    assert int((held < 0.9).sum()) > 1000


@pytest.mark.parametrize("by", ["mass", "gap"])
def test_alike_frames_are_not_counted(by):
    scores = torch.full((4, 300), 3.0)
    assert FrameCount(by=by, least=1, most=99).select(scores).frame.tolist() == [0]
    rounding = scores + 1e-6 * torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    assert len(FrameCount(by=by, least=5, most=99).select(rounding)) == 5


@pytest.mark.parametrize("by", ["mass", "gap"])
def test_of_equals_the_earlier_frames_are_chosen(by):
    scores = torch.zeros(2, 9)
    scores[:, [2, 5, 7]] = 9.0
    assert FrameCount(by=by, least=1, most=9, mass=1.0).select(scores).frame.tolist() == [2, 5, 7]
    assert FrameCount(by=by, least=1, most=2).select(scores).frame.tolist() == [2, 5]
    assert FrameCount(by=by, least=5, most=9).select(scores).frame.tolist() == [0, 1, 2, 5, 7]
    assert FrameCount(by=by, least=20, most=30).select(scores).frame.tolist() == list(range(9))
    assert FrameCount(by=by, least=3, most=9).select(scores, most=1).frame.tolist() == [2]


def test_sizes_are_shares_of_the_choices():
    scores = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]])
    selection = most_relevant(frame_relevance(scores), 2, choices=2)
    assert selection.frame.tolist() == [0, 2]
    assert selection.size.tolist() == pytest.approx([2 / (1 + 1 / math.e), 2 / (1 + math.e)])


@st.composite
def adaptive_tokenizers(draw, **fixed):
    """Tokenizers whose number of frames follows the scores, as their config says."""
    least = draw(st.integers(1, 12))
    most = draw(st.integers(least, 60))
    limit = draw(st.sampled_from([{"max_frames": most}, {"max_tokens": most}]))
    return draw(
        testing.tokenizers(
            frame_count=draw(criteria),
            min_frames=least,
            frame_mass=draw(st.sampled_from([0.5, 0.9, 1.0])),
            **limit,
            **fixed,
        )
    )


@given(st.data(), st.none() | testing.budgets(80))
def test_the_contract_holds(data, max_tokens):
    tokenizer = data.draw(adaptive_tokenizers())
    config = tokenizer.config
    videos = [data.draw(testing.frame_features(width=WIDTH)) for _ in range(2)]
    questions = ["What is red?", ""]
    prompts = [0, data.draw(st.integers(0, 1))]

    def run():
        return tokenizer(videos, questions, prompts=prompts, max_tokens=max_tokens)

    free = tokenizer(videos, questions, prompts=prompts, max_tokens=10**9)
    testing.check_deterministic(run)
    budget = config.max_tokens if max_tokens is None else max_tokens
    bound = run()
    for prompt in set(prompts):
        of_prompt = [i for i, p in enumerate(prompts) if p == prompt]
        tokens = [bound[i] for i in of_prompt]
        available = sum(len(free[i]) for i in of_prompt)
        if budget is not None:
            testing.check_budget(tokens, budget, available=available)
        lengths = [videos[i].num_frames for i in of_prompt]
        assert sum(map(len, tokens)) <= bvllm.plan(config, lengths, max_tokens=max_tokens)
        assert available <= bvllm.plan(config, lengths, max_tokens=10**9)
    for video, tokens in zip(videos, bound, strict=True):
        testing.check_time_order(tokens)
        testing.check_selection(tokens.selection, choices=config.num_frames)
        chosen = len(tokens.selection)
        most = config.max_frames or budget
        assert min(config.min_frames, video.num_frames, most) <= chosen <= most
    testing.check_independent_of_batch(tokenizer, videos, questions)


@given(st.data())
def test_a_budget_too_small_for_all_keeps_the_most_relevant_frames(data):
    tokenizer = data.draw(adaptive_tokenizers(time_encoding=False))
    video = data.draw(testing.frame_features(width=WIDTH, min_frames=2))
    chosen = tokenizer([video], ["?"])[0].selection
    max_tokens = data.draw(st.integers(1, len(chosen)))
    kept = tokenizer([video], ["?"], max_tokens=max_tokens)[0].frame.tolist()
    text = tokenizer.question_tokenizer("?")
    relevance = frame_relevance(tokenizer.frame_selector.scores(video.cls, text).detach())
    lost = sorted(set(chosen.frame.tolist()) - set(kept))
    assert len(set(kept)) == max_tokens
    # Batches of one size: nothing but rounding of the sizes may part the two rankings.
    assert not lost or float(relevance[kept].min()) >= float(relevance[lost].max()) - 1e-4


@given(st.data())
def test_patches_are_read_for_chosen_frames_only_with_gradients_too(data):
    tokenizer = data.draw(adaptive_tokenizers())
    video = data.draw(testing.frame_features(width=WIDTH, min_frames=2))
    asked = []

    def read(indices):
        asked.append(indices.tolist())
        return video.patches[indices]

    lazy = FrameFeatures(cls=video.cls, patches=read, seconds=video.seconds)
    tokens = tokenizer([lazy], ["?"])[0]
    assert asked == [tokens.selection.frame.tolist()]
    assert tokens.tokens.requires_grad and not tokens.selection.size.requires_grad


@given(st.data(), criteria, st.sampled_from(["train", "soft", "sample"]))
def test_training_and_soft_evaluation_keep_the_queries_choices(data, by, mode):
    evaluation = "hard" if mode == "train" else mode
    fixed = data.draw(testing.tokenizers(evaluation=evaluation))
    settings = fixed.config.to_dict() | {"frame_count": by, "max_frames": 3}
    adaptive = bvllm.BalancedTokenizer(bvllm.BalancedTokenizerConfig.from_dict(settings))
    adaptive.load_state_dict(fixed.state_dict())  # the same weights serve both
    video = data.draw(testing.frame_features(width=WIDTH, max_frames=40))
    training = mode == "train"
    with torch.random.fork_rng(devices=[]):
        runs = []
        for tokenizer in (fixed.train(training), adaptive.train(training)):
            torch.manual_seed(0)
            runs.append(tokenizer([video], ["?"], max_tokens=10**9)[0])
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    testing.check_selection(runs[1].selection, choices=fixed.config.num_frames)
    planned = bvllm.plan(
        adaptive.config, video.num_frames, max_tokens=10**9, training=mode == "train"
    )
    assert len(runs[1]) <= planned
