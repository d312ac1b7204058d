"""A row of a table as a question about a video, and a folder of videos as such a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bvllm_adapters.tables.cells import text_cell, unicode_cell
from bvllm_adapters.tables.media_paths import RowError, media_path
from bvllm_adapters.tables.table import Table, TableRow, plain, read_table

FIELDS = ("id", "video", "question", "query")
# Names of files that a folder's videos have. Unlike reading, which goes by what a file holds, this
# must not leave out a video that is damaged.
SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".divx", ".flv"),
    *(".f4v", ".wmv", ".asf", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".ogv"),
    *(".mxf", ".h264", ".264", ".hevc", ".265", ".mjpg", ".mjpeg", ".gif", ".apng"),
}


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
    query: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

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


def video_row(
    row: TableRow, media: Path, *, outside: bool = False, question: str | None = None
) -> VideoRow:
    """A row as a question about its video.

    Args:
        media: folder that videos are named from. outside: whether they may lie out of it.
        question: of a row that has none; None: each must have one; "": none is needed.

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
        columns={key: value for key, value in values.items() if key not in FIELDS},
    )


Rows = str | Path | Table | Iterable[Mapping[str, Any]]
"""A table's file, a folder of videos, a table, or rows as mappings."""


def table_of(table: Rows, media: str | Path | None = None) -> tuple[Table, Path]:
    """A table, and the folder that its videos are named from.

    Args:
        table: a file, see `read_table`; a folder, all videos in which are its rows; rows as
            mappings, whose videos are named from the present folder.
        media: None: the table's own folder.

    Raises:
        ValueError: for a file that cannot be read, or no rows; says which line, if it is one.
    """
    if isinstance(table, str | os.PathLike) and Path(table).is_dir():
        found, folder = videos_in(Path(table)), Path(table)
    elif isinstance(table, str | os.PathLike):
        found = read_table(table)
        folder = found.file.parent
    elif isinstance(table, Table):
        found, folder = table, table.file.parent
    else:
        found, folder = _given(table), Path()
    return found, folder if media is None else Path(media)


def videos_in(folder: Path) -> Table:
    """All videos in a folder and its folders, by their names, as rows in the order of those.

    Raises:
        ValueError: there are none.
    """
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here, name) for name in files if Path(name).suffix.lower() in SUFFIXES]
    shown = [file for file in found if not file.name.startswith(".")]  # macOS writes ._1.mp4
    if not shown:
        raise ValueError(
            f"table: got the folder {folder}, which holds no videos, wanted files named as "
            f"{' '.join(sorted(SUFFIXES))}, or a table"
        )
    rows = (
        TableRow(number, str(file), {"video": file.relative_to(folder).as_posix()})
        for number, file in enumerate(sorted(shown), 1)
    )
    return Table(folder, tuple(rows))


def _given(rows: Iterable[Mapping[str, Any]]) -> Table:
    made = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise TypeError(f"table: got {type(row).__name__} in row {number}, wanted a mapping")
        values = {str(key): plain(value) for key, value in row.items() if value is not None}
        made.append(TableRow(number, f"row {number}", values))
    if not made:
        raise ValueError("table: got no rows, wanted at least one")
    return Table(Path(), tuple(made))


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
