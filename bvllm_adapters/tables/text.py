"""Text and JSON that others wrote, read with errors that say which file and which line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_text(name: str, file: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: a file that cannot be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {file}: cannot be read ({error})") from error


def parse_json(text: str, where: str) -> Any:
    """What a JSON text holds.

    Args:
        where: file, and line if it is one of many, for messages.

    Raises:
        ValueError: no JSON, an object with one key twice, or what Python cannot hold.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError(f"{where}: cannot be read (it is nested too deeply)") from error
    except ValueError as error:
        raise ValueError(f"{where}: cannot be read ({error})") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"got {twice!r} twice in an object")
    return found


def json_rows(name: str, file: Path) -> Iterator[tuple[str, Any]]:
    """Places and values of a JSON list or, where it begins with one, of JSON lines: a row a line.

    Args:
        name: of the argument that names the file, for messages.

    Raises:
        ValueError: for a file that is not there, or holds neither; says which line, if it is one.
    """
    text = read_text(name, file)
    lines = _lines(name, file, text)
    yield from _list(name, file, text) if lines is None else lines


def _list(name: str, file: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Places and values of a JSON list."""
    raws = parse_json(text, f"{name}: {file}")
    if not isinstance(raws, list):
        raise ValueError(f"{name}: {file}: got {type(raws).__name__}, wanted a list of rows")
    for i, raw in enumerate(raws):
        yield f"{file}[{i}]", raw


def _lines(name: str, file: Path, text: str) -> Iterator[tuple[str, Any]] | None:
    """Places and values of JSON lines; None: it is a text of another kind.

    By its name or, under any other, by a first line that is an object, and more behind it.
    """
    if text.lstrip()[:1] == "[":
        return None
    lines = text.split("\n")
    full = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        if len(full) < 2:
            return None
        try:
            parse_json(full[0][1], "")
        except ValueError:
            return None
    return (
        (f"{file}:{number}", parse_json(line, f"{name}: {file}, line {number}"))
        for number, line in full
    )
