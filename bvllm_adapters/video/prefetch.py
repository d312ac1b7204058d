"""Work that runs ahead in a thread of its own: frames are decoded while the tower is busy."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """What follows the last item: whatever was raised, or nothing."""

    error: BaseException | None


@contextmanager
def ahead(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """Iterate over `items` in another thread, at most `depth` of them waiting to be taken.

    What iterating raises is raised where the items are taken. When the block is left, whether at
    the end or before it, the thread has stopped and `items`, if a generator, is closed.

    >>> with ahead(range(3), depth=1) as numbers:
    ...     print(list(numbers))
    [0, 1, 2]
    """
    waiting: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
    left = threading.Event()

    def produce() -> None:
        iterator: Iterable[T] | None = None
        raised: BaseException | None = None
        try:
            iterator = iter(items)
            for item in iterator:
                waiting.put(item)
                if left.is_set():
                    return
        except BaseException as error:  # whatever it is, it is for the one who takes the items
            raised = error
        finally:
            try:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
            except BaseException as error:
                raised = raised or error
            waiting.put(_End(raised))

    def take() -> Iterator[T]:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    # In this thread's context, so that stages are booked in the ledger that is open here.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(produce,), daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        left.set()
        while thread.is_alive():  # it may wait for room, so that it is made
            with suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
            thread.join(0.01)
