"""Multiple choice by letter: options in a prompt, and which of them an answer means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from bvllm_adapters.evaluation.exact_match import normalised

ASK_LETTER = "Answer with the option's letter from the given choices directly."
"""As LLaVA was trained to be asked, and as most who evaluate video LLMs ask."""

_LETTERED = re.compile(r"\(?([A-Za-z])(?:\)|[.:]\s|[.:]$)\s*")
_THOUGHT = re.compile(r".*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_WORDS = {"A", "I"}  # letters that are words too
_ANSWER = re.compile(
    r"(?:answer|choice|choose|pick|select)\b(?:\s+(?:is|would be|should be|must be|option|choice|"
    r"letter))*\s*[:=]?\s*(?:option\s+)?[\"'`*(\[]*([A-Za-z])\b(.?.?.?)",
    re.IGNORECASE | re.DOTALL,
)
_BEGIN = re.compile(
    r"[\s\"'`*(\[]*(?:option\s+)?[\"'`*(\[]*([A-Za-z])(?![\w'])(.*)", re.DOTALL | re.IGNORECASE
)
_CLOSED = re.compile(r"[\"'`*]*(?:\s*$|\s*[).\]:,;!?]|\n|\s*[-\u2013\u2014]\s)")
_OTHER = re.compile(r"[).\]]?\s*(?:,|/|&|or|and)\s*[(\[]?([A-Z])(?![\w'])")
_BRACKETED = re.compile(r"[(\[]([A-Za-z])[)\]]")
_ALONE = re.compile(r"(?<![\w'-])([A-Z])(?![\w'-])(.?.?.?)", re.DOTALL)


def lettered(question: str, options: Sequence[str], instruction: str = ASK_LETTER) -> str:
    """The prompt: the question, a line for each option, and how to answer."""
    lines = [
        f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    return "\n".join([question, *lines, *([instruction] if instruction else [])])


def without_letters(options: Sequence[str], *, any_letter: bool = False) -> tuple[str, ...]:
    """Options without letters of their own, where each has its own in turn: "A. dog", "B. cat"."""
    found = [_LETTERED.match(option) for option in options]
    for letter, option, match in zip(ascii_uppercase, options, found, strict=False):
        own = match is not None and (any_letter or match[1].upper() == letter)
        if not own or match is None or not option[match.end() :].strip():
            return tuple(options)
    return tuple(
        option[match.end() :].strip() if match else option
        for option, match in zip(options, found, strict=True)
    )


def letter_of(said: str, options: Sequence[str]) -> int | None:
    """The place of the option that an answer means; None: it means none, or several.

    In this order: the letter that it begins with; the one that it calls its answer; one in
    brackets; the options that it holds the words of, the longest where one is part of another; a
    capital letter that stands alone. "A" and "I" in front of a word are words. What a model thinks
    aloud, up to </think>, is not its answer.

    >>> letter_of("(B) the dog", ["a cat", "the dog"])
    1
    >>> letter_of("A dog, I think.", ["cat", "dog"])
    1
    """
    said = _THOUGHT.sub("", said).strip()
    letters = ascii_uppercase[: len(options)]
    begin = _BEGIN.match(said)
    if begin and begin[1].upper() in letters:
        letter, rest = begin[1], begin[2]
        other = _OTHER.match(rest)
        if other and other[1] in letters and letter.isupper():  # "A or B"
            return None
        place = letters.index(letter.upper())
        same = normalised(rest) == normalised(options[place]) != ""
        if _CLOSED.match(rest) or same or (letter.isupper() and letter not in _WORDS):
            return place
    for pattern in (_ANSWER, _BRACKETED):
        named = {
            match[1].upper()
            for match in pattern.finditer(said)
            if match[1].upper() in letters and (pattern is _BRACKETED or _stands(match))
        }
        if named:
            return letters.index(named.pop()) if len(named) == 1 else None
    held = _held(said, options)
    if held:
        return held[0] if len(held) == 1 else None
    alone = {match[1] for match in _ALONE.finditer(said) if match[1] in letters and _stands(match)}
    return letters.index(alone.pop()) if len(alone) == 1 else None


def _stands(match: re.Match[str]) -> bool:
    """Whether a letter is one, and no word that another follows."""
    letter, behind = match[1], match[2]
    return bool(_CLOSED.match(behind)) or (letter.isupper() and letter not in _WORDS)


def _held(said: str, options: Sequence[str]) -> list[int]:
    """The option that an answer is, or those whose words stand in it one behind another."""
    bare = said.strip(" .!\"'`*").casefold()
    same = [i for i, option in enumerate(options) if option.strip(" .!\"'`*").casefold() == bare]
    if same and bare:
        return same
    words = f" {normalised(said)} "
    texts = [normalised(option) for option in options]
    found = [i for i, text in enumerate(texts) if text and f" {text} " in words]
    return [
        i
        for i in found
        if not any(texts[j] != texts[i] and f" {texts[i]} " in f" {texts[j]} " for j in found)
    ]
