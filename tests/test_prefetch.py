from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from bvllm_adapters.ledger import ledger, stage
from bvllm_adapters.video.prefetch import ahead


class Source:
    """Counts what was made, and notes whether it was closed."""

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.count, self.fail_at, self.made, self.closed = count, fail_at, 0, False

    def items(self) -> Iterator[int]:
        try:
            for i in range(self.count):
                if i == self.fail_at:
                    raise KeyError("broken")
                self.made += 1
                yield i
        finally:
            self.closed = True


def test_items_come_in_order_and_all_of_them():
    source = Source(100)
    with ahead(source.items(), 3) as items:
        assert list(items) == list(range(100))
    assert source.closed


@pytest.mark.parametrize("depth", [1, 4])
def test_no_more_than_depth_wait(depth):
    source = Source(50)
    with ahead(source.items(), depth) as items:
        for taken in items:
            time.sleep(0.002)
            # One more is made, and held until there is room for it.
            assert source.made <= taken + 1 + depth + 1


def test_it_runs_beside_the_one_who_takes():
    more_is_made = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        more_is_made.set()
        yield 1

    with ahead(source(), 2) as items:
        assert next(iter(items)) == 0
        assert more_is_made.wait(timeout=60)  # while the first one is still held


def test_an_error_is_raised_where_items_are_taken():
    source = Source(5, fail_at=3)
    taken = []
    with pytest.raises(KeyError, match="broken"), ahead(source.items(), 2) as items:
        for item in items:
            taken.append(item)
    assert taken == [0, 1, 2] and source.closed


def test_leaving_early_stops_the_thread_and_closes_the_source():
    before = threading.active_count()
    source = Source(10**9)
    with pytest.raises(RuntimeError, match="enough"), ahead(source.items(), 2) as items:
        for item in items:
            if item == 3:
                raise RuntimeError("enough")
    assert source.closed and source.made < 20
    assert threading.active_count() == before


def test_stages_are_booked_in_the_ledger_that_is_open():
    def staged() -> Iterator[int]:
        for i in range(3):
            with stage("decode", on_device=False):
                time.sleep(0.01)
            yield i

    with ledger() as seconds, ahead(staged(), 2) as items:
        list(items)
    assert seconds["decode"] >= 0.03


class RaisesAtOnce:
    """Cannot even be iterated over."""

    def __iter__(self) -> Iterator[int]:
        raise KeyError("broken")


def raises_first() -> Iterator[int]:
    raise KeyError("broken")
    yield 0


class FailsToClose:
    def __init__(self) -> None:
        self.items = iter([0, 1])

    def __iter__(self) -> FailsToClose:
        return self

    def __next__(self) -> int:
        return next(self.items)

    def close(self) -> None:
        raise KeyError("broken")


def ends(work: Callable[[], Any]) -> Any:
    """What `work` gives or raises, in a thread that must end; it leaves no other thread behind."""
    before = set(threading.enumerate())
    done: list[Any] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive() and set(threading.enumerate()) <= before
    return done[0]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("source", [RaisesAtOnce, raises_first, FailsToClose])
def test_whatever_is_raised_ends_it(source: Callable[[], Iterable[int]], depth: int) -> None:
    def work() -> list[int]:
        with ahead(source(), depth) as items:
            return list(items)

    error = ends(work)
    assert isinstance(error, KeyError) and error.args == ("broken",)


@pytest.mark.parametrize("taken", [0, 1, 2])
@pytest.mark.parametrize("source", [RaisesAtOnce, raises_first, FailsToClose, lambda: range(9)])
def test_one_who_leaves_early_is_not_held(source: Callable[[], Iterable[int]], taken: int) -> None:
    def work() -> str:
        with ahead(source(), 1) as items, suppress(KeyError):
            for _ in range(taken):
                next(items)
        return "left"

    assert ends(work) == "left"


def test_nothing_is_an_item_too() -> None:
    with ahead([None, 1, None], 1) as items:
        assert list(items) == [None, 1, None]
