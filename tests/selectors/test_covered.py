"""Covered MMR and the numbers it goes by, each property against a slow way of saying it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bvllm_adapters.selectors.covered import centred, covered_mmr, time_bins
from bvllm_adapters.selectors.scores import local_novelty, min_max, smoothed

SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@st.composite
def videos(draw: st.DrawFn, most: int = 120) -> dict[str, Any]:
    """Features in scenes (runs of equal frames too), relevance, a number of frames."""
    count = draw(st.integers(1, most))
    scenes = draw(st.integers(1, count))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scene = torch.arange(count) * scenes // count
    features = torch.randn(scenes, 8, generator=rng)[scene]
    features = features + draw(st.sampled_from([0.0, 0.1, 1.0])) * torch.randn(
        count, 8, generator=rng
    )
    relevance = torch.rand(count, generator=rng)
    kind = draw(st.sampled_from(["any", "equal", "stepped"]))
    if kind == "equal":
        relevance = torch.full_like(relevance, 0.25)
    if kind == "stepped":
        relevance = (relevance * 4).floor() / 4
    return {
        "features": features,
        "relevance": relevance,
        "seconds": torch.arange(count, dtype=torch.float64),
        "num_frames": draw(st.integers(1, 40)),
    }


@settings(deadline=None, max_examples=300)
@given(videos(), SHARES, SHARES)
def test_exactly_so_many_different_frames_in_order(
    video: dict[str, Any], diversity: float, coverage: float
) -> None:
    count = len(video["features"])
    frames = covered_mmr(**video, diversity=diversity, coverage=coverage)
    assert len(frames) == min(video["num_frames"], count)
    assert bool((frames.diff() > 0).all())
    assert 0 <= int(frames[0]) and int(frames[-1]) < count
    again = covered_mmr(**video, diversity=diversity, coverage=coverage)
    assert torch.equal(frames, again)


@settings(deadline=None, max_examples=300)
@given(videos(most=400), SHARES, SHARES)
def test_no_gap_is_longer_than_two_bins(
    video: dict[str, Any], diversity: float, coverage: float
) -> None:
    count, wanted = len(video["features"]), video["num_frames"]
    bins = int(coverage * wanted)
    frames = covered_mmr(**video, diversity=diversity, coverage=coverage)
    if not bins or count <= wanted:
        return
    most = math.ceil(count / bins)
    assert int(frames[0]) < most and count - 1 - int(frames[-1]) < most
    assert len(frames) == 1 or int(frames.diff().max()) <= 2 * most
    assert len(time_bins(video["seconds"], bins)[frames].unique()) == min(bins, count)


@settings(deadline=None)
@given(videos(most=60), SHARES)
def test_equal_relevance_is_k_center_with_coverage(video: dict[str, Any], coverage: float) -> None:
    count, wanted = len(video["features"]), video["num_frames"]
    video["relevance"] = torch.zeros(count)
    if count <= wanted:
        return
    unit = centred(video["features"]).double()
    similar = unit @ unit.T  # as a whole here: an independent, slow way
    bins = [t * int(coverage * wanted) // count for t in range(count)]
    chosen: list[int] = []
    for k in range(wanted):
        empty = (set(bins) if coverage else set()) - {bins[t] for t in chosen}
        allowed = [t for t in range(count) if t not in chosen]
        if len(empty) >= wanted - k:
            allowed = [t for t in allowed if bins[t] in empty]
        far = -similar.mean(dim=1) if not chosen else similar[:, chosen].amax(dim=1)
        best = min(float(far[t]) for t in allowed)
        # Of frames that are equally far but for rounding, ours may be another.
        equal = [t for t in allowed if float(far[t]) - best < 1e-5]
        got = covered_mmr(**video, diversity=0.5, coverage=coverage).tolist()
        if len(equal) > 1:
            return
        chosen.append(equal[0])
    assert sorted(chosen) == got


@settings(deadline=None)
@given(videos(), SHARES, st.sampled_from([0.5, 1.0, 4.0, 1024.0]), st.integers(-8, 8))
def test_scores_of_another_scale_choose_the_same(
    video: dict[str, Any], coverage: float, scale: float, shift: int
) -> None:
    scores = (video["relevance"] * 256).floor()  # so that what is done to them is exact
    video["relevance"] = min_max(scores)
    one = covered_mmr(**video, coverage=coverage)
    video["relevance"] = min_max(scores * scale + shift)
    assert torch.equal(one, covered_mmr(**video, coverage=coverage))


@settings(deadline=None)
@given(videos(), SHARES)
def test_features_of_another_scale_choose_the_same(video: dict[str, Any], coverage: float) -> None:
    video["features"] = (video["features"] * 64).round()
    count = len(video["features"])
    padded = 2 ** math.ceil(math.log2(count)) - count  # so that their mean is exact as well
    for name in ("features", "relevance"):
        tail = video[name][-1:].expand(padded, *video[name].shape[1:])
        video[name] = torch.cat([video[name], tail])
    video["seconds"] = torch.arange(count + padded, dtype=torch.float64)
    one = covered_mmr(**video, coverage=coverage)
    video["features"] = video["features"] * 4
    assert torch.equal(one, covered_mmr(**video, coverage=coverage))


@settings(deadline=None)
@given(videos(most=80))
def test_halves_and_autocast_choose_in_float32(video: dict[str, Any]) -> None:
    video["features"] = video["features"].bfloat16()
    halves = covered_mmr(**video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = covered_mmr(**video)
    video["features"] = video["features"].float()
    assert torch.equal(halves, covered_mmr(**video)) and torch.equal(halves, cast)


def test_of_equals_the_earliest() -> None:
    frames = covered_mmr(torch.ones(12, 4), torch.zeros(12), torch.arange(12.0), 3, coverage=0)
    assert frames.tolist() == [0, 1, 2]
    features = torch.eye(4).repeat(3, 1)
    relevance = torch.tensor([0.0, 1.0, 0.0, 0.0] * 3)
    frames = covered_mmr(features, relevance, torch.arange(12.0), 1)
    assert frames.tolist() == [1]


def test_relevance_alone_is_top_k_and_whole_coverage_is_the_best_of_each_bin() -> None:
    torch.manual_seed(0)
    features, relevance, seconds = torch.randn(60, 8), torch.rand(60), torch.arange(60.0)
    top = covered_mmr(features, relevance, seconds, 7, diversity=0, coverage=0)
    assert top.tolist() == relevance.topk(7).indices.sort().values.tolist()
    best = covered_mmr(features, relevance, seconds, 6, diversity=0, coverage=1)
    assert best.tolist() == [
        10 * i + int(relevance[10 * i : 10 * i + 10].argmax()) for i in range(6)
    ]


def test_bins_are_of_time_and_not_of_frames() -> None:
    seconds = torch.cat([torch.arange(0, 10, 0.1), torch.arange(10.0, 100.0, 10.0)]).double()
    torch.manual_seed(0)
    frames = covered_mmr(
        torch.randn(len(seconds), 4), torch.rand(len(seconds)), seconds, 8, coverage=1
    )
    parts = (seconds[frames] / (seconds[-1] * len(seconds) / (len(seconds) - 1)) * 8).long()
    assert parts.tolist() == list(range(8))


def test_bins_without_frames_ask_for_nothing() -> None:
    seconds = torch.tensor([0.0, 0.1, 0.2, 0.3, 1000.0])
    frames = covered_mmr(torch.eye(5), torch.arange(5.0) / 4, seconds, 4, coverage=1)
    assert len(frames) == 4 and 4 in frames.tolist()


@given(st.integers(1, 500), st.integers(1, 60), st.sampled_from([0.1, 1 / 3, 1.0, 1 / 29.97]))
def test_bins_of_even_times_are_those_of_whole_numbers(count: int, bins: int, step: float) -> None:
    seconds = torch.arange(count, dtype=torch.float64) * step
    assert time_bins(seconds, bins).tolist() == [t * bins // count for t in range(count)]


def test_what_all_frames_share_does_not_count() -> None:
    """Features of one video lie close together: told apart by what is left around their mean."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=rng)
    cone = 4 * torch.randn(8, generator=rng)
    assert torch.allclose(centred(features + cone), centred(features), atol=1e-5)
    relevance, seconds = torch.rand(50, generator=rng), torch.arange(50.0)
    one, other = (
        covered_mmr(each, relevance, seconds, 9, coverage=0) for each in (features, features + cone)
    )
    assert torch.equal(one, other)


def test_all_at_one_time_are_told_apart_by_their_order() -> None:
    assert time_bins(torch.zeros(8), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("bins", [1, 3, 7, 50])
def test_bins_of_even_times_hold_as_many_frames_but_for_one(bins: int) -> None:
    for step in (0.1, 1.0, 1 / 29.97):
        sizes = time_bins(torch.arange(211, dtype=torch.float64) * step, bins).bincount()
        assert len(sizes) == bins and int(sizes.max() - sizes.min()) <= 1


def test_huge_features_do_not_overflow() -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 8)
    relevance, seconds = torch.rand(40), torch.arange(40.0)
    plain = covered_mmr(features, relevance, seconds, 9)
    assert torch.equal(plain, covered_mmr(features * 2.0**120, relevance, seconds, 9))


def slow_mean(values: Tensor, seconds: Tensor, reach: float, without: bool) -> Tensor:
    means = []
    for t in range(len(values)):
        near = (seconds - seconds[t]).abs() <= reach + 1e-6
        near[t] = not without
        means.append(values[near].mean(dim=0) if bool(near.any()) else values[t])
    return torch.stack(means)


TIMES = st.lists(st.floats(0, 200, width=32), min_size=1, max_size=60).map(
    lambda times: torch.tensor(sorted(times), dtype=torch.float64)
)


@settings(deadline=None)
@given(TIMES, st.sampled_from([0.0, 1.0, 3.0, 40.0]), st.integers(0, 2**31))
def test_windows_are_of_seconds(seconds: Tensor, width: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    count = len(seconds)
    scores = torch.rand(count, generator=rng)
    assert torch.allclose(
        smoothed(scores, seconds, width), slow_mean(scores.double(), seconds, width / 2, False)
    )
    features = torch.randn(count, 70, generator=rng)
    around = slow_mean(features.double(), seconds, width, True)
    wanted = (features.double() - around).norm(dim=1)
    assert torch.allclose(local_novelty(features, seconds, width), wanted, atol=1e-6)


def test_equal_scores_stay_equal() -> None:
    scores = smoothed(torch.full((1000,), 0.1, dtype=torch.float64), torch.arange(1000) / 3, 3.0)
    assert scores.unique().numel() == 1
    assert bool((min_max(scores) == 0).all())
    still = torch.rand(1, 768, generator=torch.Generator().manual_seed(0)).expand(500, -1)
    assert bool((local_novelty(still, torch.arange(500), 40.0) == 0).all())


def test_what_flares_up_once_is_less_than_what_lasts() -> None:
    scores = torch.zeros(60)
    scores[10], scores[30:33] = 1.0, 0.8
    assert int(smoothed(scores, torch.arange(60), 3.0).argmax()) == 31


def test_what_comes_and_goes_is_new() -> None:
    features = torch.zeros(300, 4)
    features[100:104, 0] = 1.0
    novelty = local_novelty(features, torch.arange(300), 40.0)
    assert set(novelty.topk(4).indices.tolist()) == {100, 101, 102, 103}
