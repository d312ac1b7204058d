"""What has videos in its rows: a table's file, a folder of videos, rows that are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bvllm_adapters.tables.table import Table, TableRow, plain, read_table

# Names of files that a folder's videos have. Unlike reading, which goes by what a file holds, this
# must not leave out a video that is damaged.
SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".divx", ".flv"),
    *(".f4v", ".wmv", ".asf", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".ogv"),
    *(".mxf", ".h264", ".264", ".hevc", ".265", ".mjpg", ".mjpeg", ".gif", ".apng"),
}

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
    shown = sorted(video_files(folder))
    if not shown:
        raise ValueError(
            f"table: got the folder {folder}, which holds no videos, wanted files named as "
            f"{' '.join(sorted(SUFFIXES))}, or a table"
        )
    rows = (
        TableRow(number, str(file), {"video": file.relative_to(folder).as_posix()})
        for number, file in enumerate(shown, 1)
    )
    return Table(folder, tuple(rows))


def video_files(folder: Path) -> Iterator[Path]:
    """Those of the folder and its folders, by their names, in no order."""
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:  # macOS writes ._1.mp4
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(here, name)


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
