"""Which text of a prompt belongs to which group of frames: its time or its number, its brackets.

Axes: T groups of one prompt, L ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Span = tuple[int, int]
"""From one column of the ids to before another."""
Ids = Sequence[int]


def spans_of(
    ids: Ids,
    bare: Sequence[Span],
    *,
    begin: int = 0,
    end: int | None = None,
    text_after: bool = False,
    loose: bool = False,
) -> tuple[list[Span], bool]:
    """The columns of each group with the text and the brackets that are its own.

    What stands between two groups is the closing bracket of the one, and the text (a time, a
    number) and the opening bracket of the other. The bracket is what all groups have alike behind
    them; the first group's text is what is most like that of the others.

    Args:
        ids: (L,) of a prompt. bare: T spans of the placeholders alone.
        begin, end: no text outside of these columns is anybody's.
        text_after: the text stands behind its group, so that all is the other way round.
        loose: the groups may be of several videos or images, so that there may be the user's own
            words between two of them, which belong to none.

    Returns:
        T spans, apart, and whether there is any text between the groups.
    """
    end = len(ids) if end is None else end
    gaps = [list(ids[a:b]) for (_, a), (b, _) in pairwise(bare)]
    if not any(gaps):
        return list(bare), False
    if text_after:
        turned = [(len(ids) - b, len(ids) - a) for a, b in reversed(bare)]
        found, _ = spans_of(
            list(ids)[::-1], turned, begin=len(ids) - end, end=len(ids) - begin, loose=loose
        )
        return [(len(ids) - b, len(ids) - a) for a, b in reversed(found)], True
    before, behind = list(ids[begin : bare[0][0]]), list(ids[bare[-1][1] : end])
    closing = _closing(gaps, before, behind)
    texts = [gap[closing:] for gap in gaps]  # of all groups but the first
    sizes = [len(text) for text in texts]
    if loose:
        sizes = _without_words(texts, before)
        texts = [text[len(text) - size :] for text, size in zip(texts, sizes, strict=True)]
    sizes = [_first_size(texts, before, loose), *sizes]
    return [(a - size, b + closing) for size, (a, b) in zip(sizes, bare, strict=True)], True


def best_tail(text: Ids, like: Ids) -> tuple[int, int]:
    """(how far from it, how long) of the end of `text` that is most like another text: by the
    fewest ids that are other, missing or too many. Of ends that are as near the longest."""
    back = text[: -2 * len(like) - 9 : -1]
    row = list(range(len(back) + 1))  # how far each end is from nothing
    for word in reversed(like):
        before, row = row, [row[0] + 1]
        for i, other in enumerate(back):
            row.append(min(before[i] + (word != other), before[i + 1] + 1, row[i] + 1))
    far, size = min((far, -size) for size, far in enumerate(row))
    return far, -size


def similar(a: Ids, b: Ids) -> bool:
    """Whether two texts say the same of two groups, but for a number."""
    far, size = best_tail(a, b)
    return size == len(a) and 2 * far <= max(len(a), len(b))


def _closing(gaps: Sequence[Ids], before: Ids, behind: Ids) -> int:
    """How many ids behind each group are its closing bracket.

    No more than all have alike, and no more than it takes until what follows is like the text
    before the first group: a question may begin as the frames' texts do.
    """
    most = _common([*gaps, behind])
    closing, far = 0, best_tail(before, gaps[0])[0]
    while closing < most:
        less = best_tail(before, gaps[0][closing + 1 :])[0]
        if less >= far:
            break
        closing, far = closing + 1, less
    return closing


def _first_size(texts: Sequence[Ids], before: Ids, loose: bool) -> int:
    """How long the first group's text is: the end of `before` that is most like another's."""
    samples = [texts[0], min(texts, key=len), max(texts, key=len)]
    far, size, like = min((*best_tail(before, text), len(text)) for text in samples)
    if 2 * far <= max(size, like) or (loose and not _even(texts)):
        return size - _stands_for_mark(texts, before, size)
    return min(len(texts[0]), len(before))  # nothing but numbers


def _stands_for_mark(texts: Sequence[Ids], before: Ids, size: int) -> bool:
    """Whether what the first group's text of this size begins with is the user's: it stands where
    all others have one and the same mark, such as a new line, between them."""
    alike = _common(texts)
    first = before[len(before) - size :]
    rest = texts[0][1:alike]
    return alike > 1 and first[:1] != texts[0][:1] and first[1:alike] == rest


def _without_words(texts: Sequence[Ids], before: Ids) -> list[int]:
    """Of each text between two groups, how long the part is that is the second group's own."""
    if len(texts) > 1 and _even(texts):
        return [len(text) for text in texts]
    near = [  # with two of the next on either side: all of a long video would take long
        any(similar(text, texts[j]) for j in (i - 1, i + 1, i - 2, i + 2) if 0 <= j < len(texts))
        for i, text in enumerate(texts)
    ]
    own = [text for text, found in zip(texts, near, strict=True) if found]
    if not own:  # two groups, or a text of its own between each
        size = best_tail(before, texts[0])[1]
        first = before[len(before) - size :]
        if len(texts) == 1 and similar(first, texts[0]):
            return [len(texts[0])]
        bracket = _common([text[::-1] for text in [*texts, before]])
        return [bracket for _ in texts]
    return [
        len(text) if found else best_tail(text, own[0])[1]
        for text, found in zip(texts, near, strict=True)
    ]


def _even(texts: Sequence[Ids]) -> bool:
    return len({len(text) for text in texts}) == 1


def _common(texts: Sequence[Ids]) -> int:
    """How many ids all of these begin with alike."""
    shortest = min(len(text) for text in texts)
    for i in range(shortest):
        if len({text[i] for text in texts}) > 1:
            return i
    return shortest
