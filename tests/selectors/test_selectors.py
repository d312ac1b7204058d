"""The selectors that need no model: what they promise to whoever asks them for frames."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bvllm_adapters.features import Selection
from bvllm_adapters.selectors.choosers import evenly, inverse_transform
from bvllm_adapters.selectors.coverage import CoverageSelector
from bvllm_adapters.selectors.names import BLIND, CHOOSING, named_selector
from bvllm_adapters.temporal_merger import TemporalMerger

NAMES = [name for name in (*CHOOSING, *BLIND) if name != "relevance"]


def features(count: int, seed: int = 0, width: int = 12) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def choose(
    selector: Any, cls: Tensor, num_frames: int, question: str = "", **more: Any
) -> Selection:
    seconds = torch.arange(len(cls), dtype=torch.float64)
    found: Selection = selector(cls, question, seconds=seconds, num_frames=num_frames, **more)
    return found


@settings(deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 200),
    st.integers(1, 60),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_each_gives_so_many_different_whole_frames_in_time_order(
    name: str, count: int, wanted: int, seed: int, dtype: torch.dtype, still: bool
) -> None:
    cls = features(count, seed).to(dtype)
    if still:
        cls = cls[:1].expand(count, -1)
    selector = named_selector(name).eval()
    selection = choose(selector, cls, wanted, "what?")
    assert selection.is_whole and selection.num_frames == count
    assert len(selection) == min(wanted, count)
    assert bool((selection.frame.diff() > 0).all())
    assert 0 <= int(selection.frame[0]) and int(selection.frame[-1]) < count
    assert bool((selection.size == 1).all())
    assert torch.equal(selection.frame, choose(selector, cls, wanted, "what?").frame)
    if selection.scores is not None:
        assert selection.scores.shape == (count,) and selection.scores.dtype == torch.float32
        assert 0 <= float(selection.scores.min()) and float(selection.scores.max()) <= 1
        assert torch.equal(TemporalMerger()(selection).scores, selection.scores)


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_copied_and_pickled(name: str) -> None:
    selector, cls = named_selector(name).eval(), features(90)
    wanted = choose(selector, cls, 9).frame
    for other in (copy.deepcopy(selector), pickle.loads(pickle.dumps(selector))):
        assert torch.equal(choose(other, cls, 9).frame, wanted)
    assert not list(selector.parameters()) and not selector.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_what_each_sees_does_not_depend_on_the_chunk(name: str) -> None:
    selector: Any = named_selector(name)
    frames = torch.rand(10, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    seen = selector.see(frames)
    assert selector.sees and seen.dim() == 2 and len(seen) == 10
    assert torch.equal(seen, torch.cat([selector.see(part) for part in frames.split(3)]))


def test_thumbnails_take_pictures_of_any_size() -> None:
    selector = CoverageSelector()
    for height, width in ((1, 1), (7, 300), (1080, 1920)):
        assert selector.see(torch.rand(2, 3, height, width)).shape == (2, 768)
    black_white = torch.stack([torch.zeros(3, 40, 40), torch.ones(3, 40, 40)])
    assert selector.see(black_white).unique().tolist() == [0, 1]


def test_by_the_tower_it_sees_nothing_itself() -> None:
    assert not CoverageSelector(by="tower").sees


def test_coverage_finds_what_comes_and_goes() -> None:
    cls = features(1).expand(3600, -1) + 0.01 * features(3600, 1)
    cls[1000:1004] += features(1, 2)
    cls[2500:2503] += features(1, 3)
    frames = choose(CoverageSelector(by="tower"), cls, 8).frame.tolist()
    assert set(frames) & set(range(1000, 1004)) and set(frames) & set(range(2500, 2503))


def test_a_dark_frame_of_noise_is_not_new() -> None:
    """Of unit length, black frames' noise would be a picture, and a new one each time."""
    cls = 0.5 + 0.05 * features(1, 0, 768) + 0.001 * features(300, 1, 768)
    cls[:100] = 0.001 * features(100, 2, 768).abs()
    cls[200:203] = 0.5 + 0.05 * features(1, 3, 768)
    assert 200 <= int(CoverageSelector().scores(cls, torch.arange(300.0)).argmax()) < 203


def test_light_that_changes_all_over_a_frame_is_nothing_new() -> None:
    cls = 0.5 + 0.05 * features(1, 0, 768) + 0.001 * features(300, 1, 768)
    cls[100:103] += 0.3
    cls[200:203] = 0.5 + 0.05 * features(1, 3, 768)
    assert 200 <= int(CoverageSelector().scores(cls, torch.arange(300.0)).argmax()) < 203


def test_random_frames_follow_seed_and_question_in_evaluation_and_the_generator_in_training() -> (
    None
):
    cls = features(500)
    random = named_selector("random", seed=3).eval()
    one = choose(random, cls, 20, "who?").frame
    assert not torch.equal(one, choose(random, cls, 20, "why?").frame)
    assert not torch.equal(
        one, choose(named_selector("random", seed=4).eval(), cls, 20, "who?").frame
    )
    noise = torch.Generator().manual_seed(0)
    assert torch.equal(one, choose(random, cls, 20, "who?", generator=noise).frame)
    random.train()
    first = choose(random, cls, 20, "who?", generator=noise).frame
    assert not torch.equal(first, choose(random, cls, 20, "who?", generator=noise).frame)
    noise.manual_seed(0)
    assert torch.equal(first, choose(random, cls, 20, "who?", generator=noise).frame)
    assert len(choose(random, cls, 20, "lone \ud800").frame) == 20


def test_random_frames_are_of_all_of_the_video() -> None:
    counts = torch.zeros(10)
    for seed in range(400):
        counts[choose(named_selector("random", seed=seed).eval(), features(10), 3).frame] += 1
    assert 80 < int(counts.min()) and int(counts.max()) < 160  # 120 on average


@given(st.integers(1, 300), st.integers(1, 80))
def test_uniform_frames_are_the_middles_of_equal_parts(count: int, wanted: int) -> None:
    frames = evenly(count, wanted).tolist()
    parts = min(wanted, count)
    assert len(frames) == parts
    for i, frame in enumerate(frames):
        assert i * count / parts <= frame + 0.5 <= (i + 1) * count / parts + 0.5
    ends = frames[0], count - 1 - frames[-1]
    assert abs(ends[0] - ends[1]) <= 1


def test_inverse_transform_follows_relevance_and_repairs_what_it_repeats() -> None:
    relevance = torch.full((100,), 0.1)
    relevance[40:45] = 1.0
    cls, seconds = features(100), torch.arange(100.0)
    frames = inverse_transform(cls, relevance, seconds, 8).tolist()
    assert set(range(40, 45)) <= set(frames) and len(set(frames)) == 8
    flat = inverse_transform(cls, torch.zeros(100), seconds, 5).tolist()
    assert flat == [9, 29, 49, 69, 89]
    spike = torch.zeros(100)
    spike[99] = 1.0
    assert inverse_transform(cls, spike, seconds, 4).tolist() == [96, 97, 98, 99]
    assert inverse_transform(cls, relevance, seconds, 500).tolist() == list(range(100))


def test_baselines_at_small_counts() -> None:
    """AKS as published gives no frame at all below 32; here each K is legal."""
    for name in ("top-k", "best-of-bins", "inverse-transform"):
        for wanted in (1, 2, 31, 33):
            assert len(choose(named_selector(name), features(100), wanted)) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_named(name: str) -> None:
    selector, cls = named_selector(name), features(5)
    times = torch.arange(5.0)
    wrong: list[tuple[Tensor, Tensor, Any, str]] = [
        (cls * torch.nan, times, 3, "cls: got NaN or inf"),
        (cls[:0], times, 3, "cls: got shape"),
        (cls[0], times, 3, "cls: got shape"),
        (cls.long(), times, 3, "cls: got dtype"),
        (cls, times[:4], 3, "seconds: got 4 times, wanted 5"),
        (cls, times.flip(0), 3, "seconds: got times that go back"),
        (cls, times * torch.nan, 3, "seconds: got NaN"),
        (cls, times, 0, "num_frames: got 0, wanted an int >= 1"),
    ]
    for given_cls, seconds, wanted, message in wrong:
        with pytest.raises(ValueError, match=message):
            selector(given_cls, "", seconds=seconds, num_frames=wanted)
    with pytest.raises(TypeError, match=r"num_frames: got 2\.5"):
        selector(cls, "", seconds=times, num_frames=2.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diversity": 1.1}, "diversity: got 1.1, wanted a number >= 0 and <= 1"),
        ({"coverage": -1}, "coverage: got -1, wanted a number"),
        ({"smooth_seconds": -1.0}, "smooth_seconds: got -1.0, wanted a number >= 0"),
        ({"novelty_seconds": 0}, "novelty_seconds: got 0, wanted a number > 0"),
        ({"by": "magic"}, "by: got 'magic', wanted one of"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoverageSelector(**settings)


def test_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match="selector: got 'magic', wanted one of"):
        named_selector("magic")
    with pytest.raises(ValueError, match="got 'relevance' without a scout, wanted scout="):
        named_selector("relevance")
    with pytest.raises(ValueError, match="seed: got -1"):
        named_selector("random", seed=-1)
