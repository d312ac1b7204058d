"""Warnings about a video, noted for its rows, whichever thread reads it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from bvllm_adapters.video.frames import VideoWarning

_notes: ContextVar[list[str] | None] = ContextVar("bvllm_notes", default=None)


@contextmanager
def noting() -> Iterator[list[str]]:
    """The words of VideoWarnings of what runs inside, in this thread and those that it starts; they
    are shown nowhere else. It takes a `listening` block around it, in whichever thread."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


@contextmanager
def listening() -> Iterator[None]:
    """Lets `noting` hear: filters and their like are of the whole process, so that threads that
    each caught their own warnings would catch one another's."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", VideoWarning)
        shown = warnings.showwarning

        def note(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            notes = _notes.get()
            if notes is None or not issubclass(category, VideoWarning):
                shown(message, category, filename, lineno, file, line)
            else:
                notes.append(str(message))

        warnings.showwarning = note
        yield
