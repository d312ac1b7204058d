"""A row of a table as a question about a video, and what is said of one that is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from bvllm_adapters.selectors.choosing import check_query
from bvllm_adapters.tables.cells import text_cell, unicode_cell
from bvllm_adapters.tables.media_paths import RowError, media_path
from bvllm_adapters.tables.table import TableRow

FIELDS = ("id", "video", "question", "query")


@dataclass(frozen=True)
class VideoRow:
    """One row.

    Args:
        row: its number, from 1. name: what its id column says, else the number. place: of the row,
            for messages.
        video: where it is. named: how the row names it.
        question: may be empty where frames are chosen. query: what a scout reads in its place.
        columns: all others of its row.
    """

    row: int
    name: str
    place: str
    video: Path
    named: str
    question: str
    query: str | None
    columns: Mapping[str, Any]

    @property
    def told(self) -> dict[str, Any]:
        """What a row of results begins with."""
        return {
            "row": self.row,
            "id": self.name,
            "video": self.named,
            "columns": dict(self.columns),
            "question": self.question,
        }


R = TypeVar("R", bound=VideoRow)


def video_row(
    row: TableRow,
    media: Path,
    *,
    outside: bool = False,
    question: str | None = None,
    fields: Sequence[str] = FIELDS,
) -> VideoRow:
    """A row as a question about its video.

    Args:
        media: folder that videos are named from. outside: whether they may lie out of it.
        question: of a row that has none; None: each must have one; "": none is needed.
        fields: columns that have a meaning; all others are kept as they are.

    Raises:
        RowError: what cannot be asked; names the column, what came and what was wanted.
    """
    values = row.values
    named = text_cell(values, "video")
    text = text_cell(values, "question") if question is None or "question" in values else question
    return VideoRow(
        row=row.number,
        name=str(values.get("id", row.number)),
        place=row.place,
        video=media_path("video", named, media, outside=outside, absolute=False),
        named=named,
        question=text,
        query=text_cell(values, "query") if "query" in values else None,
        columns={key: value for key, value in values.items() if key not in fields},
    )


def read_rows(
    rows: Iterable[TableRow], read: Callable[[TableRow], R]
) -> tuple[list[R], list[dict[str, Any]]]:
    """Rows that can be taken, and what is said of the others.

    Args:
        read: a row as it is taken; RowError for one that cannot be.
    """
    good, errors = [], []
    for row in rows:
        try:
            good.append(read(row))
        except RowError as error:
            errors.append(
                {
                    "row": row.number,
                    "id": str(row.values.get("id", row.number)),
                    "video": str(row.values.get("video")),
                    "error": f"{row.place}: {error}",
                }
            )
    return good, errors


def read_by(selector: nn.Module | None, row: R) -> R:
    """The row, unless it has a query that the selector does not read.

    Raises:
        RowError: see `check_query`.
    """
    try:
        check_query(selector, row.query)
    except ValueError as error:
        raise RowError(str(error)) from error
    return row


def check_some(rows: Sequence[TableRow], read: Callable[[TableRow], VideoRow], name: str) -> None:
    """ValueError if there are rows of which none can be taken.

    Args:
        name: of the argument that names the table, for messages.
    """
    first: str | None = None
    for row in rows:
        try:
            read(row)
            return
        except RowError as error:
            first = first or f"{row.place}: {error}"
    if first is not None:
        raise ValueError(f"{name}: none of {len(rows)} rows can be taken; the first: {first}")


def check_question(question: object) -> None:
    """TypeError or ValueError for what cannot be the question of all rows."""
    if question is None:
        return
    if not isinstance(question, str):
        raise TypeError(f"question: got {type(question).__name__}, wanted a string")
    try:
        unicode_cell("question", question)
    except RowError as error:
        raise ValueError(str(error)) from error
