"""A table that somebody else wrote: JSON, JSON lines, CSV or parquet, as rows with their places."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bvllm_adapters.tables.text import json_rows, read_text


@dataclass(frozen=True)
class TableRow:
    """One row.

    Args:
        number: from 1. place: file and line, or place in a list, for messages.
        values: column -> plain value, such as JSON has; a column without one is left out.
    """

    number: int
    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """All rows of a file, in order."""

    file: Path
    rows: tuple[TableRow, ...]

    def digest(self) -> str:
        """SHA-256 of all rows: the same for the same rows, however they are written."""
        found = hashlib.sha256()
        for row in self.rows:
            found.update(json.dumps(dict(row.values), sort_keys=True).encode() + b"\n")
        return found.hexdigest()

    @property
    def columns(self) -> list[str]:
        """Names of all columns, those of the first rows first."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))


def read_table(file: str | Path, *, name: str = "table") -> Table:
    """The rows of a file, of the kind that its name says: .csv, .tsv, .parquet, or else JSON, a
    list of objects or an object a line.

    Args:
        name: of the argument that names the file, for messages.

    Raises:
        ValueError: for a file that cannot be read or holds no rows; says which line, if it is one.
        ImportError: for parquet, where pyarrow is not installed.
    """
    file = Path(file)
    suffix = file.suffix.lower()
    separators = {".csv": ",", ".tsv": "\t"}
    if suffix in separators:
        found = _csv_rows(name, file, separators[suffix])
    elif suffix in (".parquet", ".pq"):
        found = _parquet_rows(name, file)
    else:
        found = json_rows(name, file)
    rows = []
    for number, (place, raw) in enumerate(found, 1):
        if not isinstance(raw, dict):
            raise ValueError(
                f"{name}: {place}: got {type(raw).__name__}, wanted an object of columns"
            )
        try:
            values = {key: plain(value) for key, value in raw.items() if value is not None}
        except RecursionError as error:
            raise ValueError(f"{name}: {place}: cannot be read (nested too deeply)") from error
        rows.append(TableRow(number, place, values))
    if not rows:
        raise ValueError(f"{name}: {file}: got no rows, wanted at least one")
    return Table(file, tuple(rows))


def plain(value: Any) -> Any:
    """The like that JSON has: numbers that are none are None, bytes are told by their number, and
    what it does not know, such as dates, is text."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    return value if value is None or isinstance(value, str | int) else str(value)


def _csv_rows(name: str, file: Path, separator: str) -> Iterator[tuple[str, Any]]:
    """Of a table whose first line names the columns; empty cells are left out."""
    reader = csv.reader(
        io.StringIO(read_text(name, file), newline=""), delimiter=separator, strict=True
    )
    told: Callable[[object], ValueError] = lambda error: ValueError(  # noqa: E731
        f"{name}: {file}, line {reader.line_num}: cannot be read ({error})"
    )
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not any(cells):
                continue
            if columns is None:
                columns = cells
                if len({*columns}) < len(columns) or not all(columns):
                    raise told(f"got columns {columns}, wanted names that differ")
                continue
            if len(cells) > len(columns):
                raise told(f"got {len(cells)} cells, wanted {len(columns)}, one for each column")
            values = {key: cell for key, cell in zip(columns, cells, strict=False) if cell}
            yield f"{file}:{reader.line_num}", values
    except csv.Error as error:
        raise told(error) from error


def _parquet_rows(name: str, file: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{name}: {file} is parquet, which pyarrow reads, and it is not installed: "
            "pip install pyarrow"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches():
                for values in batch.to_pylist():
                    yield f"{file}[{number}]", values
                    number += 1
    except Exception as error:  # Arrow's own, the system's, whatever a damaged file leads to
        raise ValueError(f"{name}: {file}: cannot be read ({error})") from error
