"""A row of somebody's own table as a question about a video, with what is right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from bvllm_adapters.bulk.video_row import VideoRow, video_row
from bvllm_adapters.evaluation.letters import without_letters
from bvllm_adapters.tables.cells import unicode_cell
from bvllm_adapters.tables.media_paths import RowError
from bvllm_adapters.tables.table import TableRow

By = Literal["letter", "likelihood", "match"]
FIELDS = ("id", "video", "question", "options", "answer", "query")


@dataclass(frozen=True)
class TableQuestion(VideoRow):
    """One row.

    Args:
        by: how an answer is judged.
        options: to choose from; none where `by` is "match". right: the place of the right one.
        answers: texts that are right; of options, the one.
    """

    by: By
    options: tuple[str, ...]
    right: int
    answers: tuple[str, ...]

    @property
    def told(self) -> dict[str, Any]:
        """What a row of results begins with."""
        return {**super().told, "by": self.by}


def table_question(
    row: TableRow, media: Path, *, by: By | None = None, outside: bool = False
) -> TableQuestion:
    """A row as a question.

    Args:
        media: folder that videos are named from. outside: whether they may lie out of it.
        by: None: "letter" where the row has options, else "match".

    Raises:
        RowError: what cannot be asked or judged; names the column, what came and what was wanted.
    """
    found = video_row(row, media, outside=outside, fields=FIELDS)
    values = row.values
    way: By = by or ("letter" if "options" in values else "match")
    options: tuple[str, ...] = ()
    right = 0
    if "answer" not in values:
        raise RowError("answer: got none, wanted the right one")
    if way == "match":
        answers = _answers(_cell(values["answer"]))
    else:
        keys, options = _options(_cell(values.get("options")))
        right = _right(values["answer"], keys, options)
        answers = (options[right],)
    return TableQuestion(**vars(found), by=way, options=options, right=right, answers=answers)


def _cell(value: Any) -> Any:
    """What a cell of a table of texts holds: a list or an object is written as JSON there."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _texts(name: str, values: Iterable[Any], wanted: str) -> tuple[str, ...]:
    found = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise RowError(f"{name}: got {value!r:.80}, wanted {wanted}")
        text = unicode_cell(name, str(value).strip())
        if not text:
            raise RowError(f"{name}: got an empty one, wanted {wanted}")
        found.append(text)
    return tuple(found)


def _answers(value: Any) -> tuple[str, ...]:
    wanted = "a text, or a list of those that are right"
    found = _texts("answer", value if isinstance(value, list) else [value], wanted)
    if not found:
        raise RowError(f"answer: got an empty list, wanted {wanted}")
    return found


def _options(value: Any) -> tuple[list[str], tuple[str, ...]]:
    """The name of each option, a letter unless the row has its own, and its text."""
    wanted = f"2 to {len(ascii_uppercase)} texts, in a list or by their letters"
    if isinstance(value, Mapping):
        keys, given = [str(key).strip() for key in value], list(value.values())
    elif isinstance(value, list):
        keys, given = [*ascii_uppercase[: len(value)]], value
    else:
        raise RowError(f"options: got {value!r:.80}, wanted {wanted}")
    if not 2 <= len(given) <= len(ascii_uppercase):
        raise RowError(f"options: got {len(given)}, wanted {wanted}")
    return keys, without_letters(_texts("options", given, wanted))


def _right(answer: Any, keys: list[str], options: tuple[str, ...]) -> int:
    """The place of the right option, which is named by its text, its letter or its place from 0."""
    if isinstance(answer, bool) or not isinstance(answer, str | int):
        raise RowError(f"answer: got {answer!r:.80}, wanted an option's text, letter or place")
    if isinstance(answer, int):
        if not 0 <= answer < len(options):
            raise RowError(f"answer: got place {answer}, wanted one from 0 to {len(options) - 1}")
        return answer
    said = answer.strip()
    as_text = {i for i, option in enumerate(options) if option == said}
    as_text = as_text or {i for i, option in enumerate(options) if option == without_letter(said)}
    bare = said.strip("().: ").upper()
    as_letter = {i for i, key in enumerate(keys) if key.upper() == bare}
    found = as_text | as_letter
    if len(found) > 1:
        raise RowError(f"answer: got {said!r:.80}, which fits several options, wanted a place")
    if not found and said.isdecimal() and int(said) < len(options):
        return int(said)
    if not found:
        raise RowError(f"answer: got {said!r:.80}, wanted one of {list(options)!r:.200}")
    return found.pop()


def without_letter(text: str) -> str:
    """ "B. the dog" -> "the dog" """
    return without_letters((text,), any_letter=True)[0]
