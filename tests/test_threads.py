"""One video, several threads: they push, ask and save, and each sees whole pushes alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_hosts import TINY_HOSTS, wrap_small

import bvllm_adapters as bvllm
from bvllm_adapters import Encoding

PUSHES, EACH = 12, 3
FRAMES = np.random.default_rng(0).integers(0, 256, (PUSHES * EACH, 40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=TINY_HOSTS)
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    model, processor = request.param(tmp_path_factory.mktemp("host"))
    return wrap_small(model), processor


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run(*works: Callable[[], None]) -> None:
    """All at once; what any of them raises is raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def guarded(work: Callable[[], None]) -> None:
        try:
            start.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def tokens_of(model: Any, features: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.balanced_tokenizer([features], ["what?"])[0].tokens


@pytest.fixture(scope="module")
def prefixes(tiny: tuple[Any, Any]) -> dict[int, tuple[torch.Tensor, str]]:
    """How many frames were pushed -> tokens and answer."""
    model, processor = tiny
    stream = bvllm.open_video(model, processor=processor, encoding=Encoding(chunk_size=4))
    found = {}
    for begin in range(0, len(FRAMES), EACH):
        stream.push(FRAMES[begin : begin + EACH])
        answer = stream.ask("what?", max_new_tokens=3)
        found[len(stream)] = tokens_of(model, stream.features), answer.text
    return found


def test_pushing_and_asking_and_saving(
    tiny: tuple[Any, Any], prefixes: dict[int, Any], tmp_path: Path
) -> None:
    model, processor = tiny
    encoding = Encoding(chunk_size=4)
    stream = bvllm.open_video(model, processor=processor, encoding=encoding)
    stream.push(FRAMES[:EACH])
    pushed, seen = threading.Event(), []

    def push() -> None:
        for begin in range(EACH, len(FRAMES), EACH):
            stream.push(FRAMES[begin : begin + EACH])
        pushed.set()

    def ask() -> None:
        last = False
        while not last:  # once more after all was pushed, however soon that was
            last = pushed.is_set()
            answer = stream.ask("what?", max_new_tokens=3)
            seen.append((answer.trace.frames_decoded, answer.text))

    def look() -> None:
        while not pushed.is_set():
            features, count = stream.features, len(stream)
            assert count % EACH == 0
            wanted, _ = prefixes[features.num_frames]
            assert torch.equal(tokens_of(model, features), wanted)

    def save() -> None:
        for i in range(4):
            file = tmp_path / f"{i}.safetensors"
            stream.save(file)
            loaded = bvllm.load_video(model, file, processor=processor, encoding=encoding)
            wanted, _ = prefixes[len(loaded)]
            assert torch.equal(tokens_of(model, loaded.features), wanted)

    run(push, ask, ask, look, save)
    assert len(stream) == len(FRAMES)
    assert torch.equal(tokens_of(model, stream.features), prefixes[len(FRAMES)][0])
    assert seen and all(text == prefixes[count][1] for count, text in seen)
    assert stream.tower_passes >= len(FRAMES)


def test_two_who_push(tiny: tuple[Any, Any]) -> None:
    """Whose frame comes first is open, but each is there once, at its time."""
    model, processor = tiny
    stream = bvllm.open_video(model, processor=processor, encoding=Encoding(chunk_size=4))
    half = len(FRAMES) // 2

    def push(frames: Any) -> Callable[[], None]:
        return lambda: [stream.push(frame) for frame in frames] and None

    run(push(FRAMES[:half]), push(FRAMES[half:]))
    features = stream.features
    assert features.seconds.tolist() == [float(i) for i in range(len(FRAMES))]
    whole = bvllm.open_video(model, FRAMES, processor=processor).features.cls
    order = torch.cdist(features.cls, whole).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(len(FRAMES)))
    for begin in (0, half):
        mine = order[(order >= begin) & (order < begin + half)]
        assert bool((mine.diff() > 0).all())


@pytest.mark.parametrize("cache_bytes", [0, 5000, 2**28])
def test_asking_at_once_where_frames_are_looked_at_again(
    tiny: tuple[Any, Any], cache_bytes: int
) -> None:
    model, processor = tiny
    encoding = Encoding(patches="again", cache_bytes=cache_bytes)
    opened = bvllm.open_video(model, FRAMES, processor=processor, encoding=encoding)
    kept = bvllm.open_video(model, FRAMES, processor=processor, encoding=encoding)
    questions = ["what?", "who is it?", "", "where is the ball?"]
    wanted = {q: kept.ask(q, max_new_tokens=3).text for q in questions}

    def ask(question: str) -> Callable[[], None]:
        def work() -> None:
            for _ in range(3):
                assert opened.ask(question, max_new_tokens=3).text == wanted[question]

        return work

    run(*map(ask, questions))


def test_a_push_that_fails_is_seen_by_nobody(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    stream = bvllm.open_video(model, processor=processor, encoding=Encoding(chunk_size=1))
    stream.push(FRAMES[:2])
    sight, inside, go = stream.encoded.sight, threading.Event(), threading.Event()
    look = sight.look

    def fails(pixels: torch.Tensor) -> Any:
        if threading.current_thread().name != "pushing":
            return look(pixels)
        inside.set()
        go.wait(timeout=60)
        raise RuntimeError("out of memory")

    sight.look = fails  # type: ignore[method-assign]
    raised: list[BaseException] = []

    def push() -> None:
        try:
            stream.push(FRAMES[2:5])
        except RuntimeError as error:
            raised.append(error)

    counts: list[int] = []
    pushing = threading.Thread(target=push, name="pushing", daemon=True)
    asking = threading.Thread(target=lambda: counts.append(stream.features.num_frames), daemon=True)
    pushing.start()
    assert inside.wait(timeout=60)
    asking.start()
    go.set()
    for thread in (pushing, asking):
        thread.join(timeout=60)
    assert raised and counts == [2] and len(stream) == 2
