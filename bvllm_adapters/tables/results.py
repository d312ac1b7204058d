"""A file of results that grows a row at a time: killed anywhere, it goes on where it was.

JSON lines. The first says what the rows are results of, so that those of other settings never stand
beside them; each row behind it is on the disk before the next is begun.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from bvllm_adapters.tables.table import plain

MARK = "bvllm_results"  # the first key of the first line
FORMAT = 1
BEGIN = f'{{"{MARK}": '.encode()


class Results:
    """Rows that are done, by their numbers; in a file, or in memory alone.

    Args:
        file: None: nothing is written. A file that is there goes on, a torn last line is dropped.
        of: what the rows are results of, as JSON: settings, the table, the model.
        name: of the argument that names the file, for messages.

    Raises:
        ValueError: for a file of another kind, a damaged one, one that another process is writing,
            or results of something else; says what differs. OSError: one that cannot be written.
    """

    def __init__(self, file: str | Path | None, of: Mapping[str, Any], *, name: str = "out"):
        self.file = None if file is None else Path(file)
        self.of = json.loads(json.dumps(plain(of)))
        self.name = name
        self.rows: dict[int, dict[str, Any]] = {}
        self._opened: FileIO | None = None
        if self.file is not None:
            self._opened = open_to_append(self.file, name)
            try:
                self._lock(self._opened)
                self._read(self._opened)
            except BaseException:
                self.close()
                raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row, which has its number as "row"; one that was there is replaced.

        Raises:
            OSError: the disk is full or gone; the file is as it was before.
        """
        kept: dict[str, Any] = plain(row)
        if self._opened is not None:
            self._write(self._opened, kept)
        self.rows[kept["row"]] = kept

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self, opened: FileIO) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.name}: got {self.file}, which another process is writing, wanted one of "
                "this run's own"
            ) from error
        except OSError:  # of a file system that knows no locks
            return

    def _read(self, opened: FileIO) -> None:
        assert self.file is not None
        opened.seek(0)
        content = opened.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            # Nothing yet, or a first line that was being written; whatever else it is stays.
            if not (content.startswith(BEGIN) or BEGIN.startswith(content)):
                raise _foreign(self.file, self.name)
            opened.truncate(0)
            self._write(opened, {MARK: FORMAT, "of": self.of})
            return
        lines = whole.split(b"\n")[:-1]
        self._check_head(lines[0])
        self.rows |= _rows(lines, self.file, self.name)
        if len(whole) < len(content):
            opened.truncate(len(whole))

    def _check_head(self, line: bytes) -> None:
        assert self.file is not None
        of = _head(line, self.file, self.name)
        told = [
            f"{key} {was!r:.80} there, {now!r:.80} now" for key, was, now in _differ(of, self.of)
        ]
        if told:
            raise ValueError(
                f"{self.name}: {self.file}: holds results of something else: {'; '.join(told)}; "
                "wanted another file, or what they are of"
            )

    def _write(self, opened: FileIO, values: Mapping[str, Any]) -> None:
        line = json.dumps(values, ensure_ascii=False, allow_nan=False)
        # Half a character, which JSON can hold and UTF-8 cannot, stays as JSON writes it.
        left = line.encode(errors="backslashreplace") + b"\n"
        before = os.fstat(opened.fileno()).st_size
        try:
            while left:
                left = left[opened.write(left) :]
            os.fsync(opened.fileno())
        except OSError as error:
            with suppress(OSError):
                opened.truncate(before)
            raise OSError(
                f"{self.name}: {self.file}: cannot be written ({error.strerror or error}); what "
                "is done is kept, and the same call goes on from there"
            ) from error


def open_to_append(file: Path, name: str) -> FileIO:
    """A regular file, made if it is not there.

    Raises:
        ValueError: its folder is not there, or it is no file. OSError: it cannot be written.
    """
    if not file.parent.is_dir():
        raise ValueError(f"{name}: got {file}, wanted a file in a folder that is there")
    if file.exists() and not file.is_file():
        raise ValueError(f"{name}: got {file}, wanted a file")
    try:
        return open(file, "a+b", buffering=0)
    except OSError as error:
        raise OSError(f"{name}: {file}: cannot be written ({error.strerror or error})") from error


def read_results(*files: str | Path) -> list[dict[str, Any]]:
    """The rows of one or more files of results, of shards of one table, in the table's order.

    A row that stands twice counts as it stands last; a last line that is torn does not count.

    Raises:
        ValueError: no file is given; one cannot be read, is damaged or of another kind, or they
            are results of different things.
    """
    if not files:
        raise ValueError("files: got none, wanted at least one")
    rows: dict[int, dict[str, Any]] = {}
    first: tuple[Path, Any] | None = None
    for file in map(Path, files):
        try:
            *lines, _ = file.read_bytes().split(b"\n")
        except OSError as error:
            raise ValueError(f"files: {file}: cannot be read ({error})") from error
        of = _head(lines[0] if lines else b"", file, "files")
        first = first or (file, of)
        told = [f"{key} {a!r:.80} and {b!r:.80}" for key, a, b in _differ(first[1], of)]
        if told:
            raise ValueError(
                f"files: {first[0]} and {file} hold results of different things: {'; '.join(told)}"
            )
        rows |= _rows(lines, file, "files")
    return [rows[number] for number in sorted(rows)]


def _head(line: bytes, file: Path, name: str) -> dict[str, Any]:
    """What a first line says the rows are results of."""
    try:
        head = json.loads(line)
        version, of = head[MARK], dict(head["of"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _foreign(file, name) from None
    if version != FORMAT:
        raise ValueError(
            f"{name}: {file}: is of format {version!r}, wanted {FORMAT}; take another file"
        )
    return of


def _rows(lines: Sequence[bytes], file: Path, name: str) -> dict[int, dict[str, Any]]:
    """Of all lines, the first of which is none, by their numbers."""
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            row = json.loads(line)
            rows[int(row["row"])] = row
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{name}: {file}, line {number}: is damaged ({error!r}); take the line out, and "
                "its row is done again"
            ) from error
    return rows


def _foreign(file: Path, name: str) -> ValueError:
    return ValueError(
        f"{name}: got {file}, which holds something else, wanted a new file or one of results"
    )


def _differ(there: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, what it was and what it is, of each value that differs."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *there]):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differ(there.get(key), now.get(key), inner)
    elif there != now:
        yield name, there, now
