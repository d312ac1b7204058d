"""Work in threads for those who ask a server: so much at a time, and no more than will be done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from chosen_for_requests import Refused

T = TypeVar("T")


class Places:
    """So many pieces of work at a time, each in a thread, and so many that wait for a place."""

    def __init__(self, places: int, queue: int, seconds: float) -> None:
        self.places, self.most, self.seconds = places, places + queue, seconds
        self.taken = 0  # by what runs and by what waits
        self._pool = ThreadPoolExecutor(places, "select")
        self._running: set[threading.Event] = set()

    async def run(self, work: Callable[[threading.Event], T]) -> T:
        """Its result. Who stops waiting for it frees its place, as soon as the work has heard of
        it by the event that it is given.

        Raises:
            Refused: there is no place, or it took too long.
        """
        if self.taken >= self.most:
            message = f"got {self.taken} requests with videos already, try again later"
            raise Refused(429, "busy", message)
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def free(_: Any) -> None:
            with suppress(RuntimeError):  # of a loop that has ended
                loop.call_soon_threadsafe(self._free, stop)

        future = self._pool.submit(work, stop)
        self.taken += 1
        self._running.add(stop)
        future.add_done_callback(free)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.seconds)
        except asyncio.TimeoutError as error:
            message = f"frames were not chosen within {self.seconds:g} s"
            raise Refused(504, "select_timeout", message) from error
        finally:
            stop.set()  # and what has not begun never does

    def _free(self, stop: threading.Event) -> None:
        self.taken -= 1
        self._running.discard(stop)

    def close(self) -> None:
        for stop in self._running:
            stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
