"""Work ahead of whoever takes it: in order, no more than is soon needed, and none left behind."""

from __future__ import annotations

import threading
import time
import warnings
from contextvars import ContextVar

import pytest
from rows import threads

from bvllm_adapters.bulk.noted import listening, noting
from bvllm_adapters.bulk.workers import Left, check_left, in_order
from bvllm_adapters.video.frames import VideoWarning


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_and_few_are_made_ahead(workers: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    with in_order(work, iter(range(12)), workers) as results:
        for taken, result in enumerate(results, 1):
            assert result == (taken - 1) ** 2
            assert len(begun) <= taken + workers
    assert sorted(begun) == [*range(12)] and not threads()


def test_what_work_raises_is_raised_where_it_is_taken() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise KeyError(item)
        return item

    with in_order(work, range(9), 2) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyError):
            next(results)
    assert not threads()


def test_a_block_that_is_left_lets_go_of_its_work() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(item: int) -> None:
        try:
            while item:
                begun.set()
                check_left()
                time.sleep(0.001)
        except Left:
            ended.set()
            raise

    with pytest.raises(ValueError, match="enough"), in_order(work, range(5), 1) as results:
        next(results)
        assert begun.wait(60)
        raise ValueError("enough")
    assert ended.is_set() and not threads()
    check_left()  # nobody has left this


def test_work_runs_in_the_context_of_whoever_asks() -> None:
    name: ContextVar[str] = ContextVar("name", default="none")
    name.set("mine")
    with in_order(lambda _: name.get(), range(3), 2) as results:
        assert [*results] == ["mine"] * 3


def test_warnings_are_noted_by_whose_video_they_are_of() -> None:
    def work(item: int) -> list[str]:
        with noting() as notes:
            for part in range(3):
                warnings.warn(f"{item} {part}", VideoWarning, stacklevel=1)
                time.sleep(0.001)
        return notes

    with listening(), in_order(work, range(20), 4) as results:
        for item, notes in enumerate(results):
            assert notes == [f"{item} {part}" for part in range(3)]
    with pytest.warns(VideoWarning, match="shown"), listening():
        warnings.warn("shown", VideoWarning, stacklevel=1)
    with pytest.raises(VideoWarning):
        warnings.warn("as before", VideoWarning, stacklevel=1)
