import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.evaluation.intervals import bootstrap, share, wilson


def test_wilson_agrees_with_published_values():
    # Newcombe (1998), table I: 81 of 263, and 0 of 20.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_one_answer_a_video_is_wilson_itself():
    right = [[True]] * 40 + [[False]] * 20
    p, low, high = share(right)
    assert p == pytest.approx(2 / 3)
    assert (low, high) == pytest.approx(wilson(2 / 3, 60), abs=2e-3)


def test_answers_that_agree_within_a_video_count_once():
    alike = [[True] * 5] * 30 + [[False] * 5] * 30
    mixed = [[True, False, True, False, True]] * 30 + [[False, True, False, True, False]] * 30
    assert share(alike)[0] == share(mixed)[0] == 0.5
    assert share(alike)[1:] == pytest.approx(wilson(0.5, 60), abs=5e-3)
    assert share(mixed)[2] - share(mixed)[1] < share(alike)[2] - share(alike)[1]


def test_all_right_is_not_certain():
    p, low, high = share([[True, True]] * 10)
    assert p == 1.0
    assert high == pytest.approx(1.0)
    assert 0.6 < low < 0.8


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Videos that are easy or hard, five answers about each: 95 %, give or take chance."""
    rng = random.Random(0)
    held = 0
    for _ in range(400):
        right = []
        for _ in range(60):
            p = rng.choice([0.5, 0.9])
            right.append([rng.random() < p for _ in range(5)])
        _, low, high = share(right)
        held += low <= 0.7 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_no_answers_are_refused():
    with pytest.raises(ValueError, match="right: got no answers"):
        share([[], []])


@given(
    right=st.lists(st.lists(st.booleans(), max_size=4), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 9),
)
def test_a_bootstrap_holds_its_share_and_repeats(right, seed):
    p, low, high = bootstrap(right, seed=seed, draws=200)
    answers = [one for video in right for one in video]
    assert p == pytest.approx(sum(answers) / len(answers))
    assert 0 <= low <= p <= high <= 1
    assert bootstrap(right, seed=seed, draws=200) == (p, low, high)
    assert bootstrap([*right, []], seed=seed, draws=200) == (p, low, high)


def test_a_bootstrap_of_single_answers_is_about_wilsons():
    right = [[True]] * 120 + [[False]] * 80
    assert bootstrap(right)[1:] == pytest.approx(wilson(0.6, 200), abs=0.01)


def test_a_bootstrap_draws_videos_not_answers():
    alike = [[True] * 5] * 30 + [[False] * 5] * 30
    assert bootstrap(alike)[1:] == pytest.approx(wilson(0.5, 60), abs=0.02)


def test_where_videos_do_not_differ_there_is_an_interval_too():
    assert bootstrap([[True]] * 10) == share([[True]] * 10)
    assert bootstrap([[True, False]]) == share([[True, False]])
    with pytest.raises(ValueError, match="right: got no answers"):
        bootstrap([[]])
