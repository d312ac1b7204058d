"""The same question with a budget and without: each way is asked for its memory and its seconds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bvllm_adapters.bench.clips import at_least
from bvllm_adapters.bench.counted import Counter, Setting, Work
from bvllm_adapters.bench.fits import too_large
from bvllm_adapters.bench.rows import TOTAL, Row, rows_of
from bvllm_adapters.bench.unwrapped import ask_unwrapped, own_way
from bvllm_adapters.conversation import ask
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.wrap import unwrapped
from bvllm_adapters.hosts.wrapped import Wrapped
from bvllm_adapters.ledger import ledger, peak_memory, stage
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.trace import Trace
from bvllm_adapters.video.read import open_source

TEXT_TOKENS = 64  # of a prompt that is not put together, since the model is too large to run


@dataclass
class Way:
    """One length of video, with a budget or without.

    Args:
        ask: what is measured, decoding as many chunks ahead of the tower as it is told; gives
            its own ledger of seconds.
        around: what must hold meanwhile, and is not measured.
    """

    frames: int
    wrapped: bool
    ask: Callable[[int], dict[str, float]]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    work: dict[str, Work] = field(default_factory=dict)
    tokens: int = 0
    note: str | None = None  # why it cannot be run
    peaks: dict[str, int] = field(default_factory=dict)
    seconds: list[Mapping[str, float]] = field(default_factory=list)

    def measure_memory(self) -> None:
        # One thing after the other, so that each stage's peak is its own.
        with self._if_it_fits(), self.around(), peak_memory() as self.peaks:
            self.ask(0)

    def measure_time(self) -> None:
        with self._if_it_fits(), self.around():
            begin = time.perf_counter()
            seconds = self.ask(Encoding().prefetch)
            self.seconds.append({**seconds, TOTAL: time.perf_counter() - begin})

    def rows(self, new_tokens: int) -> list[Row]:
        return rows_of(
            self.work,
            frames=self.frames,
            wrapped=self.wrapped,
            tokens=self.tokens,
            further_tokens=new_tokens - 1,
            seconds=self.seconds,
            peaks=self.peaks,
            note=self.note,
        )

    @contextmanager
    def _if_it_fits(self) -> Iterator[None]:
        gc.collect()
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            self.note = "the device has too little memory for it"
            self.seconds.clear()
            self.peaks.clear()
        # Only now is the error gone, whose traceback kept all that had been made alive.
        if self.note is not None:
            gc.collect()
            torch.cuda.empty_cache()


class Asking:
    """What is asked of a model, with a budget and in its own way without.

    Args:
        model: without peft around it. The others as in `bench`.
    """

    def __init__(
        self, model: Any, processor: Any, question: str, max_tokens: int | None, new_tokens: int
    ) -> None:
        self.model, self.processor, self.question = model, processor, question
        self.max_tokens, self.new_tokens = max_tokens, new_tokens
        self.host, self.own = host_of(model), own_way(model)
        self.generate: dict[str, Any] = {
            "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False
        }  # fmt: skip
        self.traces: dict[int, Trace] = {}  # of the answers with a budget, by their frames

    def ways(self, video: str | Path, seconds: int, folder: Path) -> tuple[Way, Way]:
        """With a budget and without, of so many seconds of the video."""
        clip = at_least(video, seconds, folder)
        shown = len(open_source(clip, fps=1.0, end=seconds))  # fewer, if it has fewer of them
        return (
            Way(shown, True, partial(self.with_budget, clip, seconds)),
            Way(shown, False, partial(self.without, clip, seconds), self.bare),
        )

    def with_budget(self, clip: Path, end: float, prefetch: int) -> dict[str, float]:
        trace = ask(
            self.model, clip, self.question, processor=self.processor, end=end,
            max_tokens=self.max_tokens, encoding=Encoding(prefetch=prefetch), **self.generate,
        ).trace  # fmt: skip
        self.traces[trace.frames_decoded] = trace
        return trace.seconds

    def without(self, clip: Path, end: float, prefetch: int) -> dict[str, float]:
        with ledger() as seconds:
            with stage("decode", on_device=False):  # the packets
                source = open_source(clip, fps=1.0, end=end)
            ask_unwrapped(
                self.model, self.host, self.processor, self.own, source, self.question, prefetch,
                **self.generate,
            )  # fmt: skip
        return seconds

    def bare(self) -> AbstractContextManager[Any]:
        is_wrapped = isinstance(self.model, Wrapped)
        return unwrapped(self.model) if is_wrapped else nullcontext()

    def memory_with_budget(
        self, ways: Sequence[Way], video: str | Path, took: Callable[[], object]
    ) -> Counter:
        """Measure each, and count it; the counter knows the length of the first one's prompt."""
        counter = None
        for way in ways:
            with prompt_lengths(self.model) as lengths:
                way.measure_memory()
            if counter is None:
                text = lengths[0] - 1 if lengths else TEXT_TOKENS
                setting = setting_of(
                    self.model, self.processor, video, self.question, text, self.new_tokens
                )
                counter = Counter(self.model, setting)
            trace = self.traces.get(way.frames) or counter.expected(way.frames, self.max_tokens)
            way.work, way.tokens = counter.wrapped(trace), trace.num_tokens
            took()
        assert counter is not None  # there is a length
        return counter

    def memory_without(
        self, ways: Sequence[Way], counter: Counter, took: Callable[[], object]
    ) -> None:
        """Count each, and measure those that can be run."""
        for way in ways:
            way.work, way.tokens = counter.unwrapped(way.frames)
            way.note = too_large(self.model, way.work, way.tokens, counter.setting)
            if way.note is None:
                way.measure_memory()
            took()


def setting_of(
    model: nn.Module, processor: Any, video: str | Path, question: str, text: int, new: int
) -> Setting:
    frame = next(open_source(video, fps=1.0, end=1.0).read(np.arange(1)))
    pixels = host_of(model).pixels(processor, frame[None])
    return Setting(question, text, new, torch.from_numpy(frame), pixels)


@contextmanager
def prompt_lengths(model: Any) -> Iterator[list[int]]:
    """Ids of each prompt that is embedded inside, the placeholder among them."""
    lengths: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: lengths.append(inputs[0].shape[1])
    )
    try:
        yield lengths
    finally:
        hook.remove()
