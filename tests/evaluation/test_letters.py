"""Which option an answer means."""

from __future__ import annotations

from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.evaluation.exact_match import matches, normalised
from bvllm_adapters.evaluation.letters import letter_of, lettered, without_letters

OPTIONS = ["a cat", "the dog", "two birds", "a man"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("[b]", "B"), ("B.", "B"), ("B:", "B"), ("b)", "B"),
        ("**B**", "B"), ("`B`", "B"), (" \n B \n", "B"), ("B. the dog", "B"), ("B the dog", "B"),
        ("B\nbecause it barks", "B"), ("B - the dog", "B"), ("Option B", "B"),
        ("A", "A"), ("A.", "A"), ("A a cat", "A"), ("A, as it meows", "A"),
        ("The answer is B", "B"), ("The answer is (B).", "B"), ("The answer is: b.", "B"),
        ("Answer: B", "B"), ("answer:\n\n**B**", "B"), ("The correct answer is option B.", "B"),
        ("The best choice would be C, I think.", "C"), ("I choose D", "D"),
        ("A dog is seen. The answer is B", "B"), ("<think>A or C?</think> B", "B"),
        ("It barks, so (B)", "B"), ("I think B", "B"),
        ("the dog", "B"), ("The dog.", "B"), ("It is a dog", "B"), ("I see 2 birds there", "C"),
        ("A man", "D"), ("A dog", "B"), ("It shows a man!", "D"),
        ("", None), ("I do not know", None), ("A or B", None), ("B, C", None), ("B and D", None),
        ("a man and the dog", None), ("(A) or (B)", None), ("E", None), ("A house", None),
        ("The answer is A. No, the answer is B.", None), ("I am not sure", None), ("bees", None),
    ],
)  # fmt: skip
def test_what_is_said_and_meant(said: str, meant: str | None) -> None:
    found = letter_of(said, OPTIONS)
    assert (None if found is None else ascii_uppercase[found]) == meant


texts = st.lists(
    st.text("bcdefghjklmnopqrstuvwxyz", min_size=3, max_size=8), min_size=2, max_size=8, unique=True
)
forms = st.sampled_from(
    ["{0}", "({0})", "{0}.", "{0}) {1}", "{0}. {1}", "{0}: {1}", "Answer: {0}", "**{0}.** {1}",
     "The answer is {0}.", "the answer is ({0})", "Option {0}", "I choose {0}, no doubt.", "{1}",
     "{1}."]
)  # fmt: skip


@given(options=texts, data=st.data(), form=forms)
def test_each_option_is_known_in_each_form(
    options: list[str], data: st.DataObject, form: str
) -> None:
    right = data.draw(st.integers(0, len(options) - 1))
    assert letter_of(form.format(ascii_uppercase[right], options[right]), options) == right


@given(said=st.text(), options=st.lists(st.text(min_size=1), min_size=2, max_size=26))
def test_whatever_is_said_it_is_an_option_or_none(said: str, options: list[str]) -> None:
    assert letter_of(said, options) in (None, *range(len(options)))


def test_a_prompt_has_its_options_in_order() -> None:
    assert lettered("What?", ["x", "y"], "Say it.") == "What?\nA. x\nB. y\nSay it."
    assert lettered("What?", ["x", "y"], "") == "What?\nA. x\nB. y"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["A. x", "B. y"], ("x", "y")),
        (["(A) x", "(B) y"], ("x", "y")),
        (["a) x", "b: y"], ("x", "y")),
        (["B. x", "A. y"], ("B. x", "A. y")),
        (["A. x", "y"], ("A. x", "y")),
        (["A.", "B."], ("A.", "B.")),
        (["A.M. radio", "B.C. times"], ("A.M. radio", "B.C. times")),
    ],
)
def test_letters_of_their_own_are_taken_off(given: list[str], wanted: tuple[str, ...]) -> None:
    assert without_letters(given) == wanted


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("The Dog.", ["dog"], True),
        ("two", ["2"], True),
        ("1,000", ["1000"], True),
        ("3.5", ["35"], False),
        ("-5", ["5"], False),
        ("don't", ["dont"], True),
        ("a well-known man", ["well known man"], True),
        ("cat", ["dog", "cat"], True),
        ("a cat", ["dog"], False),
        ("", ["dog"], False),
        ("!", ["?"], False),
        ("?", ["?"], True),
        ("\uff11\uff10", ["10"], True),
        ("Stra\u00dfe", ["strasse"], True),
        ("猫。", ["猫"], True),
        ("yes, it is", ["yes"], False),
    ],
)
def test_exact_match(said: str, answers: list[str], right: bool) -> None:
    assert matches(said, answers) is right


@given(st.lists(st.text("bcdxyz123", min_size=1, max_size=6), min_size=1, max_size=4))
def test_case_articles_and_punctuation_do_not_count(words: list[str]) -> None:
    plain = normalised(" ".join(words))
    assert normalised("The " + ", ".join(words).upper() + "!") == plain
    assert normalised(plain) == plain
