"""Open answers: right if they are a right one, but for case, articles and punctuation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

ASK_BRIEFLY = "Answer the question using a single word or phrase."
"""As LLaVA was trained to be asked."""

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {word: str(i) for i, word in enumerate(
    "zero one two three four five six seven eight nine ten".split()
)} | {"none": "0"}  # fmt: skip


def normalised(text: str) -> str:
    """A text as VQA's evaluation compares it (Antol et al., 2015; its vqaEval.py): lower case,
    without punctuation and articles, number words up to ten as digits.

    Unlike there, apostrophes are left out everywhere, where it has a list of contractions; signs
    and points of numbers stay; and letters of other scripts are letters.

    >>> normalised("The two dogs, don't they?")
    '2 dogs dont they'
    >>> normalised("-1,000.50!")
    '-1000.50'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['\u2019`]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"[.](?!\d)|(?<=\w)-|-(?!\d)", " ", text)
    text = "".join(c if _counts(c) else " " for c in text)
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in _ARTICLES)


def _counts(letter: str) -> bool:
    return letter in ".-" or unicodedata.category(letter)[0] in "LMNS"


def matches(said: str, answers: Iterable[str]) -> bool:
    """Whether an answer is one of those that are right; of those of punctuation alone, as it is."""
    found = normalised(said)
    return any(
        found == normalised(answer) and (found != "" or said.strip() == answer.strip())
        for answer in answers
    )
