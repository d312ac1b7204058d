import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters import read_video
from bvllm_adapters.evaluation.needle import COLORS, KINDS, TRAIN_DIGITS, Haystack, make_haystack

haystacks = st.builds(
    make_haystack,
    st.integers(0, 2**40),
    num_frames=st.integers(20, 600),
    needles=st.integers(2, 10),
    split=st.sampled_from(["train", "test"]),
)


def answer(haystack: Haystack, text: str) -> str:
    """What somebody would say who has read the list of needles."""
    needles = haystack.needles
    words = re.findall(r"[a-z]+|\d", text.lower())
    said = [word for word in words if word in COLORS or word.isdigit()]

    def named(word: str) -> list[int]:
        return [i for i, n in enumerate(needles) if word in (n.color, str(n.digit))]

    if text.startswith("How many"):
        return str(len(named(said[0])))
    found = [named(word) for word in said]
    assert all(len(each) == 1 for each in found), "ambiguous"
    hits = [needles[each[0]] for each in found]
    if text.startswith("Which came first"):
        return said[0] if hits[0].start < hits[1].start else said[1]
    if text.startswith("What digit"):
        return str(hits[0].digit)
    return hits[0].color if text.startswith("What color") else hits[0].place


@given(haystacks)
def test_answers_follow_from_the_needles_asked_about_and_from_no_others(haystack):
    for question in haystack.questions:
        assert answer(haystack, question.text) == question.answer
        shown = [haystack.needles[i] for i in question.needles]
        if question.kind != "count":  # of which the others must be known not to count
            alone = replace(haystack, needles=tuple(shown))
            assert answer(alone, question.text) == question.answer
        else:
            assert len(shown) == int(question.answer) <= 3


@given(haystacks)
def test_needles_differ_and_show_one_after_another_within_the_video(haystack):
    shown = [second for needle in haystack.needles for second in needle.seconds]
    assert shown == sorted(set(shown))
    assert shown[-1] < haystack.num_frames
    assert len({needle.digit for needle in haystack.needles}) == len(haystack.needles)
    assert {needle.length for needle in haystack.needles} <= {1, 2}


@given(st.integers(0, 2**40), st.sampled_from(["train", "test"]))
def test_splits_share_no_digit_and_no_photograph(seed, split):
    haystack = make_haystack(seed, split=split)
    for needle in haystack.needles:
        assert (needle.glyph < TRAIN_DIGITS) == (split == "train")
    assert {scene.photo.split("/")[0] for scene in haystack.scenes} == {split}


def test_all_kinds_answers_and_photographs_come_up():
    many = [make_haystack(seed, needles=8) for seed in range(200)]
    questions = [question for haystack in many for question in haystack.questions]
    assert Counter(q.kind for q in questions).keys() == set(KINDS)
    answers = {q.answer for q in questions}
    assert answers >= {*COLORS, *"0123456789", "top left", "bottom right"}
    assert {q.answer for q in questions if q.kind == "count"} == {"1", "2", "3"}
    assert len({scene.photo for haystack in many for scene in haystack.scenes}) == 4
    firsts = [q for q in questions if q.kind == "first"]
    named_first = [q.text.split(",")[1].split()[0] == q.answer for q in firsts]
    assert 0.35 < np.mean(named_first) < 0.65  # the order in the question says nothing


def test_a_seed_gives_the_same_video_again_and_another_another():
    one, again, other = (make_haystack(seed, num_frames=20) for seed in ([4, 1], [4, 1], [4, 2]))
    assert one == again != other
    assert all(map(np.array_equal, one.render(range(20)), again.render(range(20))))


def test_only_the_frames_of_a_needle_show_it():
    haystack = make_haystack(3, num_frames=40, needles=5)
    empty = replace(haystack, needles=())
    differs = [
        not np.array_equal(a, b)
        for a, b in zip(haystack.render(range(40)), empty.render(range(40)), strict=True)
    ]
    shown = {second for needle in haystack.needles for second in needle.seconds}
    assert [i for i, differ in enumerate(differs) if differ] == sorted(shown)


def test_a_needle_is_drawn_in_its_color_at_its_place():
    haystack = make_haystack(5, num_frames=60, needles=8)
    empty = replace(haystack, needles=())
    for needle in haystack.needles:
        (with_it,), (without,) = (h.render([needle.start], 96) for h in (haystack, empty))
        near = np.abs(with_it.astype(int) - np.array(COLORS[needle.color])).sum(axis=2) < 30
        rows, columns = np.nonzero(near & (with_it != without).any(axis=2))
        assert len(rows) > 20
        assert (rows.mean() > 48) == ("bottom" in needle.place)
        assert (columns.mean() > 48) == ("right" in needle.place)


@pytest.mark.parametrize("fps", [1, 3])
def test_the_file_holds_the_frames_that_are_rendered(tmp_path, fps):
    haystack = make_haystack(1, num_frames=24, needles=4)
    haystack.write(tmp_path / "clip.mp4", fps=fps)
    video = read_video(tmp_path / "clip.mp4", fps=1.0)
    assert len(video.frames) == 24
    for decoded, rendered in zip(video.frames, haystack.render(range(24)), strict=True):
        assert np.abs(decoded.astype(int) - rendered).mean() < 6  # of 255: coding loses little


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"needles": 1}, "needles: got 1, wanted an int from 2 to 10"),
        ({"needles": 11}, "needles: got 11, wanted an int from 2 to 10"),
        ({"num_frames": 15, "needles": 8}, "num_frames: got 15, wanted an int >= 16"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_haystack(0, **arguments)


def test_a_size_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="size: got 4, wanted an int >= 16"):
        make_haystack(0).write(tmp_path / "clip.mp4", size=4)
    assert not (tmp_path / "clip.mp4").exists()
