"""Work that runs ahead in a thread of its own: frames are decoded while the tower is busy."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Raised:
    error: BaseException


@contextmanager
def ahead(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """Iterate over `items` in another thread, at most `depth` of them waiting to be taken.

    What iterating raises is raised where the items are taken. When the block is left, whether at
    the end or before it, the thread has stopped and `items`, if a generator, is closed.

    >>> with ahead(range(3), depth=1) as numbers:
    ...     print(list(numbers))
    [0, 1, 2]
    """
    waiting: queue.Queue[T | _Raised | None] = queue.Queue(maxsize=depth)  # None: the end
    left = threading.Event()

    def put(item: T | _Raised | None) -> bool:
        while not left.is_set():
            try:
                waiting.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # whatever it is, it is for the one who takes the items
            put(_Raised(error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def take() -> Iterator[T]:
        while (item := waiting.get()) is not None:
            if isinstance(item, _Raised):
                raise item.error
            yield item

    # In this thread's context, so that stages are booked in the ledger that is open here.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(produce,), daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        left.set()
        thread.join()
