"""Damaged JSON: the ways in which one value, or a whole file, can be wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

Place = tuple[Any, ...]

WHOLE: dict[str, Callable[[str], bytes]] = {
    "cut off": lambda text: text[: len(text) // 2].encode(),
    "empty": lambda text: b"",
    "no UTF-8": lambda text: text[:20].encode() + b"\xff\xfe" + text[20:].encode(),
    "a list": lambda text: b"[1, 2]",
    "a number": lambda text: b"7",
    "null": lambda text: b"null",
    "nested too deeply": lambda text: b'{"a":' * 100_000,
    "not a number": lambda text: b'{"a": NaN}',
    "zeros": lambda text: b"\0" * len(text),
    "twice": lambda text: (text + text).encode(),
}
GONE = "<gone>"
VALUES: list[Any] = [
    GONE, None, "text", -1, -(10**9), 0, 10**9, 10**40, 0.5, True, [], {}, ["a"], {"a": 1},
    float("inf"),
]  # fmt: skip


def places(values: Any, begin: Place = ()) -> Iterator[Place]:
    """Every key, and the first places of every list, at any depth."""
    entries = values.items() if isinstance(values, dict) else enumerate(values[:2])
    for key, value in entries:
        yield (*begin, key)
        if isinstance(value, dict | list):
            yield from places(value, (*begin, key))


def mutated(text: str, place: Place, value: Any) -> bytes:
    """The JSON with another value there."""
    new = at = copy.deepcopy(json.loads(text))
    for key in place[:-1]:
        at = at[key]
    if value == GONE:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return json.dumps(new).replace("Infinity", "1e400").encode()


def value_at(text: str, place: Place) -> Any:
    at = json.loads(text)
    for key in place:
        at = at[key]
    return at


def is_another_of_its_kind(before: Any, now: Any) -> bool:
    """Whether it may well be what was meant: a number for a number, null where nothing is."""
    if now == GONE:
        return False
    numbers = [
        isinstance(each, int | float) and not isinstance(each, bool) for each in (before, now)
    ]
    return all(numbers) or now is None
