"""The question as a scout reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.selectors.query import pieces, question_line

ASKED = "What is the man in red doing?"


@pytest.mark.parametrize(
    "prompt",
    [
        ASKED,
        f"  {ASKED}\n",
        f"Question: {ASKED}",
        f"Q: {ASKED}",
        f"{ASKED}\nA. He sings.\nB. He runs.\nC. He sleeps.\nD. Is he there?",
        f"{ASKED}\n(A) He sings.\n(B) He runs.\nAnswer with the option's letter directly.",
        f"{ASKED}\nOptions:\nA) He sings.\nB) He runs.\nThe best answer is:",
        f"{ASKED} A. sings B. runs C. sleeps",
        f"{ASKED} (A) sings (B) runs (C) sleeps Answer:",
        f"{ASKED}\na. sings\nb. runs\nPlease answer yes or no.",
        f"{ASKED} Answer the question using a single word or phrase.",
        f"{ASKED}\nAnswer with one word.",
        f"{ASKED}\nPlease select the best option.",
        f"Select the best answer to the following multiple-choice question based on the video.\n"
        f"{ASKED}\nA. sings\nB. runs\nRespond with only the letter (A, B, C, or D).",
        f"Question: {ASKED}\nOptions:\n(A) sings\n(B) runs\nOnly give the best option.\nAnswer: (",
        f"Carefully watch the video.\n{ASKED}\n[A] sings\n[B] runs",
    ],
)
def test_options_instructions_and_labels_are_left_out(prompt: str) -> None:
    assert question_line(prompt) == ASKED


@pytest.mark.parametrize(
    "text",
    [
        "A man in red with a dog",
        "A. Lincoln gives a speech",
        "Describe the video in detail.",
        "Which team scores first, Team A. or Team B?",
        "What does the sign say: A or B?",
        "Is it vitamin C? And who takes it?",
        "Please",
        "Answer with one word.",
        "Q",
        "\u8c01\u5728\u5531\u6b4c\uff1f",
        "",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert question_line(text) == text


def test_lines_that_ask_go_before_those_that_do_not() -> None:
    prompt = "This video is 20 minutes long.\nFrames come with their times.\nWho sings?\nWhere?"
    assert question_line(prompt) == "Who sings? Where?"
    assert question_line("A man sings\nin the rain") == "A man sings in the rain"


@given(st.text(max_size=200))
def test_a_question_is_never_lost(text: str) -> None:
    line = question_line(text)
    assert bool(line) == bool(text.split())
    assert "\n" not in line


@given(st.text(max_size=300), st.integers(1, 40))
def test_nothing_is_cut_off(text: str, limit: int) -> None:
    parts = pieces(text, lambda part: len(part) <= limit)
    assert all(0 < len(part) <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
    if len(text.strip()) <= limit:
        assert len(parts) <= 1


def test_cuts_are_between_sentences_if_that_will_do() -> None:
    text = "One man sings. Another man plays the piano! Who are they?"
    assert pieces(text, lambda part: len(part) <= 45) == [
        "One man sings. Another man plays the piano!",
        "Who are they?",
    ]
    assert pieces(text, lambda part: len(part) <= 20) == [
        "One man sings.",
        "Another man plays",
        "the piano!",
        "Who are they?",
    ]
