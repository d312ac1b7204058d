"""How far a command is with the rows of a table, how fast, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EACH_SECONDS = 60.0  # a line where nobody looks on, as in the log of a cluster


@contextmanager
def row_progress() -> Iterator[Callable[[int, int], None]]:
    """A callback for (rows done, rows); rows that were done before are no speed of ours."""
    from tqdm import tqdm

    with tqdm(unit="row", leave=False, disable=None) as bar:  # unless stderr is no terminal
        begin = told = time.monotonic()
        first: int | None = None

        def progress(done: int, total: int) -> None:
            nonlocal first, told
            if first is None:
                first = bar.initial = bar.n = done
                bar.total = total
            bar.update(done - bar.n)
            now = time.monotonic()
            if bar.disable and now - told >= EACH_SECONDS:
                told = now
                line = tqdm.format_meter(done, total, now - begin, unit="row", initial=first)
                print(line, file=sys.stderr, flush=True)

        yield progress
