"""All rows of a run's JSON files, and the names of those that nothing can be learned from."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bvllm_adapters.checks import path
from bvllm_adapters.training.conversations import Row, RowError, parse


@dataclass(frozen=True)
class Source:
    """A JSON file of rows, and the folder that their images and videos are named from."""

    file: Path
    media: Path


def sources_of(data: Any) -> tuple[Source, ...]:
    """Of a config's list of {file, media}; media left out is the file's own folder.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(data, list | tuple) or not data:
        raise ValueError(f"data: got {data!r}, wanted a list of files with their media")
    return tuple(_source(f"data[{i}]", entry) for i, entry in enumerate(data))


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

    def add(self, raw: Any, media: Path, name: str) -> None:
        try:
            parse(raw, media, name)
        except RowError as error:
            self.malformed.append(f"{name}: {error}")
            return
        self._text += json.dumps([raw, str(media), name]).encode()
        self._ends.append(len(self._text))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        raw, media, name = json.loads(self._text[self._ends[index] : self._ends[index + 1]])
        return parse(raw, Path(media), name)

    def __len__(self) -> int:
        return len(self._ends) - 1


def read_rows(sources: Iterable[Source]) -> Rows:
    """The rows of all files, in order.

    Raises:
        ValueError: for a file that is not there, or holds no JSON list.
    """
    rows = Rows()
    for source in sources:
        try:
            raws = json.loads(source.file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"data: {source.file}: cannot be read ({error})") from error
        if not isinstance(raws, list):
            raise ValueError(
                f"data: {source.file}: got {type(raws).__name__}, wanted a list of rows"
            )
        for i, raw in enumerate(raws):
            identity = raw.get("id") if isinstance(raw, Mapping) else None
            name = f"{source.file}[{i}]" + ("" if identity is None else f" (id {identity})")
            rows.add(raw, source.media, name)
    return rows
