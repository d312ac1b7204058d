"""Work done ahead by several threads, in order, no more of it than is soon needed."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Left(Exception):
    """Nobody waits for this work any more."""


@contextmanager
def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[Iterator[R]]:
    """What `work` makes of each item, in their order, made ahead by so many threads.

    At most `workers` results wait or are being made, beside the one that was taken last. What
    `work` raises is raised where its result is taken. When the block is left, nothing of it runs
    any more; work that calls `check_left` now and then ends the sooner.

    Args:
        workers: 0: each is made when it is asked for, in the thread that asks.

    >>> with in_order(len, ["a", "bcd", ""], workers=2) as lengths:
    ...     print(list(lengths))
    [1, 3, 0]
    """
    if not workers:
        yield map(work, items)
        return
    left = Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="bvllm")
    waiting: deque[Future[R]] = deque()

    def made() -> Iterator[R]:
        for item in items:
            # In this thread's context, so that stages are booked in the ledger that is open here.
            context = contextvars.copy_context()
            context.run(_left.set, left)
            waiting.append(pool.submit(context.run, work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield made()
    finally:
        left.set()
        pool.shutdown(cancel_futures=True)


_left: contextvars.ContextVar[Event | None] = contextvars.ContextVar("bvllm_left", default=None)


def check_left(*_: int) -> None:
    """`Left` if this runs in a worker of a block that has been left. It can be a progress callback,
    so that a long video that is being read is let go."""
    left = _left.get()
    if left is not None and left.is_set():
        raise Left
