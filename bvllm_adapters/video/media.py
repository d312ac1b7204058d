"""What a video or image is read from: a file, bytes, a file that is open already, or a URL.

Each is opened anew for whoever reads it, so that several decoders may read side by side.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bvllm_adapters.video.frames import VideoError

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Media:
    """Bytes that can be opened any number of times, from any thread.

    Args:
        name: as the caller gave it; errors and `Video.source` say it.
        size: in bytes.
        opener: gives a new seekable binary file at its beginning, for the caller to close.
        path: where it is on this disk; None: elsewhere.
    """

    name: str
    size: int
    opener: Callable[[], BinaryIO]
    path: Path | None = None

    def open(self) -> BinaryIO:
        """A new file at its beginning; VideoError if it is there no more."""
        with readable(self.name):
            return self.opener()


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever a file system has against reading becomes a VideoError: each has its own kinds."""
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise VideoError(f"{name}: cannot be read ({reason})") from error


def media_of(source: object) -> Media | None:
    """A path to anything but a folder, a file:// or other URL, bytes, or an open file, as
    something to be read; None for a folder and for what is none of these.

    Raises:
        VideoError: it is not there, is empty, or cannot be read.
        TypeError: a file that is open in text mode.
    """
    if isinstance(source, str | os.PathLike):
        path = path_of(source)
        return _url(str(source)) if path is None else _file(path, os.fspath(source))
    if isinstance(source, Bytes):
        data = bytes(source)  # as they are now
        return _not_empty(Media("bytes", len(data), lambda: io.BytesIO(data)))
    if hasattr(source, "fs") and hasattr(source, "path") and not hasattr(source, "read"):
        return _fsspec(str(getattr(source, "full_name", source.path)), source.fs, source.path)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _open_file(source)
    return None


def path_of(source: object) -> Path | None:
    """Where on this disk a path or file:// URL leads; None for other URLs, and for no path."""
    if isinstance(source, str) and "://" in source and not os.path.exists(source):
        parts = urlsplit(source)
        if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
            return None
        return Path(url2pathname(parts.path))
    return Path(source) if isinstance(source, str | os.PathLike) else None


def _file(path: Path, name: str | bytes) -> Media | None:
    told = os.fsdecode(name)
    with readable(told):
        if path.is_dir():
            return None
        if not path.exists():
            raise VideoError(f"{told}: no such file")
        if not path.is_file():
            raise VideoError(f"{told}: not a file")
        size = path.stat().st_size
    # An absolute path, as the working directory may become another.
    absolute = path.absolute()
    return _not_empty(Media(told, size, lambda: absolute.open("rb"), path))


def _url(url: str) -> Media:
    try:
        import fsspec
    except ImportError:
        raise VideoError(
            f"{url}: wanted a file of this disk, or fsspec to read URLs with (pip install fsspec)"
        ) from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise VideoError(f"{url}: cannot be read ({error})") from error
    return _fsspec(url, system, path)


def _fsspec(name: str, system: Any, path: str) -> Media:
    def opened() -> BinaryIO:
        with readable(name):
            return cast(BinaryIO, system.open(path, "rb"))

    with opened() as file, opened() as another:
        if file is another:  # as of files in memory, which then have one place for all who read
            return replace(_open_file(file), name=name)
        return _not_empty(Media(name, file.seek(0, os.SEEK_END), opened))


def _open_file(file: Any) -> Media:
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) else type(file).__name__
    lock = threading.Lock()
    try:
        if isinstance(file, io.TextIOBase):
            raise TypeError(f"source: got {name!r} open in text mode, wanted it in binary mode")
        before = file.tell()
        size = file.seek(0, os.SEEK_END)
        size = file.tell() if size is None else size
        file.seek(before)
    except (OSError, ValueError) as error:  # closed, or a pipe
        raise VideoError(f"{name}: wanted a file that is open and can seek ({error})") from error
    return _not_empty(Media(name, size, lambda: cast(BinaryIO, View(file, size, lock))))


class View(io.RawIOBase):
    """A file of somebody else's, read from a place of our own; its own place stays where it is."""

    def __init__(self, file: Any, size: int, lock: threading.Lock) -> None:
        super().__init__()
        self._file, self._size, self._lock, self._at = file, size, lock, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        with self._lock:
            before = self._file.tell()
            self._file.seek(self._at)
            try:
                parts = [bytes(self._file.read(wanted))]
                while parts[-1] and (left := wanted - sum(map(len, parts))):  # some give less
                    parts.append(bytes(self._file.read(left)))
            finally:
                self._file.seek(before)
        data = b"".join(parts)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _not_empty(media: Media) -> Media:
    if not media.size:
        raise VideoError(f"{media.name}: the file is empty")
    return media
