"""All rows of a run's files, and the names of those that nothing can be learned from."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bvllm_adapters.checks import path
from bvllm_adapters.tables.text import json_rows
from bvllm_adapters.training.conversations import Medium, Row, RowError, parse


@dataclass(frozen=True)
class Source:
    """A JSON or JSONL file of rows, and the folder that their images and videos are named from."""

    file: Path
    media: Path


def sources_of(data: Any, name: str = "data") -> tuple[Source, ...]:
    """Of a config's list of {file, media}; media left out is the file's own folder.

    Args:
        name: of the config's field, for messages.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(data, list | tuple) or not data:
        raise ValueError(f"{name}: got {data!r}, wanted a list of files with their media")
    return tuple(_source(f"{name}[{i}]", entry) for i, entry in enumerate(data))


def _source(name: str, entry: Any) -> Source:
    if isinstance(entry, Source):
        return entry
    if not isinstance(entry, Mapping) or "file" not in entry or set(entry) - {"file", "media"}:
        raise ValueError(f"{name}: got {entry!r}, wanted file: and, if it is elsewhere, media:")
    file, media = path(f"{name}.file", entry["file"]), entry.get("media")
    return Source(file, file.parent if media is None else path(f"{name}.media", media))


@dataclass(eq=False)
class Rows(Sequence[Row]):
    """All rows of several files, and the names of those that are malformed.

    They are kept as text in one buffer, which forked DataLoader workers share: a list of objects
    would be copied into each worker, as reading an object counts it.
    """

    malformed: list[str] = field(default_factory=list)
    _text: bytearray = field(default_factory=bytearray)
    _ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def add(self, raw: Any, media: Path, name: str, *, outside: bool = False) -> None:
        try:
            row = parse(raw, media, name, outside=outside)
        except RowError as error:
            self.malformed.append(f"{name}: {error}")
            return
        found = [(medium.kind, str(medium.path)) for medium in row.media]
        self._text += json.dumps([row.name, row.turns, found, row.system]).encode()
        self._ends.append(len(self._text))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        name, turns, found, system = json.loads(
            self._text[self._ends[index] : self._ends[index + 1]]
        )
        media = tuple(Medium(kind, Path(path)) for kind, path in found)
        return Row(name, tuple(turns), media, system)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def digest(self) -> str:
        """SHA-256 of all that is learned from: in order each row's system turn and turns, and its
        media's kinds, paths and sizes in bytes (of folders and missing files none). Not of what
        media hold, nor of rows' ids and what else stands beside a conversation."""
        found = hashlib.sha256()
        for row in self:
            media = [(medium.kind, str(medium.path), _size(medium.path)) for medium in row.media]
            found.update(json.dumps([row.system, row.turns, media]).encode())
        return found.hexdigest()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def read_rows(sources: Iterable[Source], *, name: str = "data", outside: bool = False) -> Rows:
    """The rows of all files, in order.

    A file is a JSON list of rows or, where it begins with one, JSON lines: a row a line.

    Args:
        name: of the config's field, for messages. outside: whether media may lie outside of their
            folder, see `media_path`.

    Raises:
        ValueError: for a file that is not there, or holds neither; says which line, if it is one.
    """
    rows = Rows()
    for source in sources:
        for place, raw in json_rows(name, source.file):
            identity = raw.get("id") if isinstance(raw, Mapping) else None
            named = place + ("" if identity is None else f" (id {str(identity)[:80]})")
            rows.add(raw, source.media, named, outside=outside)
    return rows
