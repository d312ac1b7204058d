from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.context import asked, asking
from bvllm_adapters.question import QuestionTokenizer, pad, question_from_prompt


def test_ids_are_those_of_bert_base_uncased():
    tokenizer = QuestionTokenizer()
    assert tokenizer.vocab_size == 30523  # with InstructBLIP's [DEC]
    # Recorded from transformers' AutoTokenizer on the same vocabulary.
    ids = tokenizer("What is the man doing?")
    assert ids.tolist() == [101, 2054, 2003, 1996, 2158, 2725, 1029, 102]
    assert ids.dtype == torch.int64
    assert tokenizer("").tolist() == [101, 102]


def test_long_questions_lose_their_beginning():
    tokenizer = QuestionTokenizer(max_length=5)
    assert tokenizer("one two three four").tolist() == tokenizer("two three four").tolist()
    assert QuestionTokenizer(max_length=2)("anything").tolist() == [101, 102]


@given(st.text())
def test_any_text_is_legal(text):
    ids = QuestionTokenizer()(text)
    assert 2 <= len(ids) <= 256
    assert ids[0] == 101 and ids[-1] == 102
    assert bool(((ids >= 0) & (ids < 30523)).all())


def test_another_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nhi\n")
    tokenizer = QuestionTokenizer(vocabulary=tmp_path / "vocab.txt")
    assert tokenizer("hi there").tolist() == [2, 4, 1, 3]


def test_words_of_ones_own():
    tokenizer = QuestionTokenizer(vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "?"])
    assert tokenizer.vocab_size == 6
    assert tokenizer("Red or blue?").tolist() == [2, 4, 1, 1, 5, 3]


def test_a_question_that_is_no_string_is_named():
    with pytest.raises(ValueError, match="question: got list, wanted a string"):
        QuestionTokenizer()(["what?"])


def test_padding_is_on_the_right_and_masked():
    ids, mask = pad([torch.tensor([5]), torch.tensor([6, 7, 8])])
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]


def spell(ids):
    return " ".join(map(str, ids))


def test_a_prompt_without_labels_is_the_question():
    ids = torch.tensor([0, 0, 11, -200, 12, 13])
    mask = torch.tensor([0, 0, 1, 1, 1, 1])
    assert question_from_prompt(ids, spell, attention_mask=mask) == "11 12 13"


@given(st.data())
def test_nothing_behind_the_first_question_is_read(data):
    """Changing answers, and what is asked after them, leaves the question as it is."""
    question = [11, -200, 12]
    tail = data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=9))
    learned = data.draw(st.lists(st.booleans(), min_size=len(tail), max_size=len(tail)))
    ids = torch.tensor([*question, 7, *tail])
    labels = torch.tensor(
        [-100] * len(question)
        + [7, *(t if is_label else -100 for t, is_label in zip(tail, learned, strict=True))]
    )
    assert question_from_prompt(ids, spell, labels=labels) == "11 12"


def test_a_row_that_is_all_answer_asks_nothing():
    ids = torch.tensor([-200, 5, 6])
    assert question_from_prompt(ids, spell, labels=torch.tensor([-100, 5, 6])) == ""


def test_left_padding_before_a_labelled_row_does_not_count_as_an_answer():
    ids, labels = torch.tensor([0, 11, 12, 5]), torch.tensor([0, -100, -100, 5])
    mask = torch.tensor([0, 1, 1, 1])
    assert question_from_prompt(ids, spell, attention_mask=mask, labels=labels) == "11 12"


def test_labels_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"labels: got shape \(2,\), wanted \(3,\) as ids"):
        question_from_prompt(torch.arange(3), spell, labels=torch.zeros(2))


def test_asking_says_what_is_asked_within_its_block():
    assert asked() is None
    with asking("outer?"):
        with asking("inner?"):
            assert asked() == "inner?"
        assert asked() == "outer?"
    assert asked() is None
