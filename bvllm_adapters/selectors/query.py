"""The question as a scout reads it: what is asked, without options and instructions, in pieces that
are short enough.

A scout was trained on captions of a line. A multiple-choice prompt is longer than it can read, and
what a tokenizer cuts off without a word is the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# "A. a dog", "(b) two", "C: red"
_OPTION = re.compile(r"\s*(?:[(\[][A-Ja-j][)\]]|[A-Ja-j][).:])\s+\S")
# The same within a line, from the first on: two of them, in order, are no words by chance.
_OPTIONS_INSIDE = re.compile(
    r"\s(?:[(\[]?[Aa][)\].:]\s+\S.*?\s[(\[]?[Bb][)\].:]\s|\([Aa]\)\s*\S.*?\s\([Bb]\)\s*\S).*",
    re.DOTALL,
)
_INSTRUCTION = re.compile(
    r"\s*(?:please\b|options?\b|choices\b|answer(?:\s+(?:with|the|in|by|using|only|directly|"
    r"briefly)\b|\s*:)|(?:select|choose|pick)\s+(?:the|one|from|an?)\b|(?:respond|reply)\s+"
    r"(?:with|in|only)\b|(?:the\s+)?(?:best|correct)\s+(?:answer|option)\b|only\s+(?:give|answer|"
    r"output)\b|give\s+(?:only|your)\b|output\s+only\b|question\s*:\s*$)",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\s*(?:question|q)\s*\d*\s*[:.]\s*", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?;\u3002\uff01\uff1f])\s*|\n+")


def question_line(question: str) -> str:
    """What is asked for, in one line: without lettered options, instructions and labels.

    Of several lines those that ask, if any does. Where nothing would be left, all of it is.

    >>> question_line("Question: What is it?\\nA. a banana\\nB. a clock\\nAnswer with a letter.")
    'What is it?'
    """
    lines = []
    for line in _OPTIONS_INSIDE.sub("", f" {question}").splitlines():
        line = _LABEL.sub("", line, count=1) if _LABEL.match(line) else line
        if _OPTION.match(line):
            continue
        sentences = re.split(r"(?<=[.!?])\s+", line)
        line = " ".join(part for part in sentences if not _INSTRUCTION.match(part)).strip()
        if line:
            lines.append(line)
    asking = [line for line in lines if "?" in line or "\uff1f" in line]
    return " ".join(" ".join(asking or lines).split()) or " ".join(question.split())


def pieces(text: str, fits: Callable[[str], bool]) -> list[str]:
    """A text in as few pieces as fit, one after the other, cut between sentences if that will do,
    else between words, else within them. Nothing is left out but space at the cuts.

    Args:
        fits: whether a text is short enough; of one character it must be.
    """
    text = text.strip()
    if not text or fits(text):
        return [text] if text else []
    sentences = [part for part in _SENTENCE.split(text) if part and part.strip()]
    for parts, joint in ((sentences, " "), (text.split(), " "), ([*text], "")):
        if len(parts) > 1:
            return [piece for part in _packed(parts, joint, fits) for piece in pieces(part, fits)]
    return [text]


def _packed(parts: list[str], joint: str, fits: Callable[[str], bool]) -> list[str]:
    """Neighbours together as long as they fit; what does not by itself stays alone."""
    packed = [parts[0]]
    for part in parts[1:]:
        longer = joint.join((packed[-1], part))
        if fits(longer):
            packed[-1] = longer
        else:
            packed.append(part)
    return packed
