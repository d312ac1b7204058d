"""Which text of a prompt is whose, in the formats that processors write."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bvllm_transformers.own_text import Span, spans_of
from bvllm_transformers.placeholders import find

HOLE, OPEN, CLOSE, OUTER_OPEN, OUTER_CLOSE = 300, 301, 302, 303, 304
SIGNS = {"[": OPEN, "]": CLOSE, "{": OUTER_OPEN, "}": OUTER_CLOSE, "#": HOLE}

# What stands before and behind the placeholders of a group; bytes are ids.
FORMATS = {
    "Qwen3-VL": ("<{:.1f} seconds>[", "]"),
    "InternVL": ("Frame{n}: [", "]\n"),
    "VideoLLaMA3": ("Time {:.1f}s:", ","),
    "SmolVLM": ("\nFrame from {mm:02d}:{ss:02d}:[", "]"),
    "Gemma 4": (" {mm:02d}:{ss:02d} [", "]"),
    "Kimi": ("00:{mm:02d}:{ss:02d}.000[video", "]"),
    "MiniMax": ("]<]{:.1f} seconds[>[", "]"),
    "brackets": ("[", "]"),
}


def ids(text: str) -> list[int]:
    return [SIGNS.get(sign, ord(sign)) for sign in text]


def written(form: str, times: Sequence[float], size: int) -> list[str]:
    before, behind = FORMATS[form]
    return [
        before.format(t, n=n + 1, mm=int(t) // 60, ss=int(t) % 60) + "#" * size + behind
        for n, t in enumerate(times)
    ]


def holes_of(words: Sequence[int], size: int) -> list[Span]:
    at = [i for i, word in enumerate(words) if word == HOLE]
    return [(at[i], at[i + size - 1] + 1) for i in range(0, len(at), size)]


def left(words: Sequence[int], spans: Sequence[Span], kept: set[int]) -> list[int]:
    gone = {i for g, (a, b) in enumerate(spans) if g not in kept for i in range(a, b)}
    return [word for i, word in enumerate(words) if i not in gone]


times_of = st.lists(
    st.integers(0, 4000).map(lambda tenths: tenths / 10), min_size=2, max_size=12, unique=True
).map(sorted)
heads = st.sampled_from(["", "user\n", "{", "user\n{", "A: ", "Look at this 12:30 video.\n"])
tails = st.sampled_from(
    ["", "}", "}\nWhat is it?", "\nWhat?", "Frame1 or Frame2?", "<0.5", "Time?"]
)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("loose", [False, True])
@given(times=times_of, head=heads, tail=tails, size=st.integers(1, 3), data=st.data())
@settings(deadline=None, max_examples=20)
def test_a_prompt_without_some_groups_is_that_of_the_others(
    form: str, loose: bool, times: list[float], head: str, tail: str, size: int, data: st.DataObject
) -> None:
    groups = written(form, times, size)
    chosen = data.draw(st.sets(st.integers(0, len(times) - 1), min_size=1))
    words = ids(head + "".join(groups) + tail)
    spans, own_text = spans_of(words, holes_of(words, size), loose=loose)
    assert own_text
    assert all(a <= b for (_, a), (b, _) in pairwise(spans))
    expected = ids(head + "".join(groups[i] for i in sorted(chosen)) + tail)
    assert left(words, spans, chosen) == expected


@given(times=times_of, size=st.integers(1, 3), data=st.data())
@settings(deadline=None, max_examples=20)
def test_text_behind_its_group(times: list[float], size: int, data: st.DataObject) -> None:
    """GLM: brackets around the picture, then its time."""
    groups = [f"[{'#' * size}]{time:.1f} seconds" for time in times]
    chosen = data.draw(st.sets(st.integers(0, len(times) - 1), min_size=1))
    words = ids("user\n{" + "".join(groups) + "}What?")
    spans, _ = spans_of(words, holes_of(words, size), text_after=True)
    expected = ids("user\n{" + "".join(groups[i] for i in sorted(chosen)) + "}What?")
    assert left(words, spans, chosen) == expected


@pytest.mark.parametrize("form", sorted(FORMATS))
@given(
    clips=st.lists(times_of, min_size=2, max_size=3),
    between=st.sampled_from([" and ", "\n", "Then compare it with the next:\n", "] ["]),
    data=st.data(),
)
@settings(deadline=None, max_examples=15)
def test_several_videos_keep_the_words_between_them(
    form: str, clips: list[list[float]], between: str, data: st.DataObject
) -> None:
    sizes = [data.draw(st.integers(1, 3)) for _ in clips]
    groups = [written(form, times, size) for times, size in zip(clips, sizes, strict=True)]
    chosen = [data.draw(st.sets(st.integers(0, len(t) - 1), min_size=1)) for t in clips]
    words = ids("user\n" + between.join("".join(clip) for clip in groups) + "?")
    row = torch.tensor([words])
    places = find(row, row == HOLE, [len(times) for times in clips], sizes)
    gone = torch.zeros(len(words), dtype=torch.bool)
    for place, kept in zip(places, chosen, strict=True):
        for group, (a, b) in enumerate(place.spans):
            if group not in kept:
                gone[a:b] = True
    expected = between.join(
        "".join(clip[i] for i in sorted(kept)) for clip, kept in zip(groups, chosen, strict=True)
    )
    assert row[0][~gone].tolist() == ids("user\n" + expected + "?")


def test_words_of_the_user_between_frames_are_nobodys() -> None:
    """Frames that are counted one by one may be of two videos, or be images."""
    clips = [written("InternVL", [1, 2, 3], 2), written("InternVL", [1, 2, 3, 4], 2)]
    between = "Now look at this one, from another day:\n"
    words = ids("user\n" + "".join(clips[0]) + between + "".join(clips[1]) + "Which?")
    spans, _ = spans_of(words, holes_of(words, 2), loose=True)
    for group in range(7):
        expected = [text for i, text in enumerate(clips[0] + clips[1]) if i != group]
        expected.insert(2 if group < 3 else 3, between)
        assert left(words, spans, set(range(7)) - {group}) == ids(
            "user\n" + "".join(expected) + "Which?"
        )


@pytest.mark.parametrize(
    "text", ["Is [##] like [##]?", "Here [##] and there, on the left, [##] or, at last, [##]."]
)
def test_sentences_with_images_in_them_stay_whole(text: str) -> None:
    words = ids(text)
    holes = holes_of(words, 2)
    spans, _ = spans_of(words, holes, loose=True)
    said = "".join(chr(word) for word in left(words, spans, set()) if word < 256)
    words_of = "".join(sign for sign in text if sign not in SIGNS)
    # A space before each bracket is as good as a part of it.
    assert said.replace(" ", "") == words_of.replace(" ", "")


@pytest.mark.parametrize("count", [1, 4])
def test_groups_without_text_between_have_none(count: int) -> None:
    words = ids("Look: {" + "##" * count + "}?")
    spans, own_text = spans_of(words, holes_of(words, 2))
    assert not own_text and spans == holes_of(words, 2)


@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4), size=st.integers(1, 3))
@settings(deadline=None)
def test_a_video_without_frames_has_no_place(lengths: list[int], size: int) -> None:
    rows = [ids("a" + "#" * (length * size) + "b" * (4 - length) * size) for length in lengths]
    row = torch.tensor(rows)
    places = find(row, row == HOLE, lengths, [1] * len(lengths))
    shown = [i for i, length in enumerate(lengths) if length]
    assert [(place.row, place.video) for place in places] == [(i, i) for i in shown]
    assert [place.num_groups for place in places] == [lengths[i] for i in shown]


@pytest.mark.parametrize(
    ("text", "groups", "message"),
    [
        ("####", [3], "got 4 visual placeholders, wanted a number that fits"),
        ("##a####", [2, 3], "got 6 visual placeholders, wanted a number that fits"),
    ],
)
def test_placeholders_that_no_pixels_fill(text: str, groups: list[int], message: str) -> None:
    row = torch.tensor([ids(text)])
    with pytest.raises(ValueError, match=message):
        find(row, row == HOLE, groups, [1] * len(groups))


def test_a_video_in_two_prompts() -> None:
    row = torch.tensor([ids("##a"), ids("##a")])
    with pytest.raises(ValueError, match="got 2 visual placeholders in prompt 0"):
        find(row, row == HOLE, [4], [1])


def test_pixels_of_a_prompt_that_is_not_there() -> None:
    row = torch.tensor([ids("aa"), ids("aa")])
    with pytest.raises(ValueError, match="input_ids: got 0 visual placeholders"):
        find(row, row == HOLE, [2], [1])
