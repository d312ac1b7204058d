"""Asking a model the same with a budget and without: how long, how much work, how much memory."""

from __future__ import annotations

import gc
import tempfile
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

from bvllm_adapters.bench.clips import at_least, whole
from bvllm_adapters.bench.counted import Counter, Setting, Work
from bvllm_adapters.bench.rows import TOTAL, Row, rows_of
from bvllm_adapters.bench.unwrapped import ask_unwrapped, own_way
from bvllm_adapters.config import check_count
from bvllm_adapters.conversation import ask
from bvllm_adapters.evaluation.needle import DEMO_VIDEO
from bvllm_adapters.hosts.adapter import base_model, tokenizer_of
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.wrap import Wrapped, unwrapped
from bvllm_adapters.ledger import ledger, peak_memory, stage
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.trace import Trace
from bvllm_adapters.video.read import open_source

QUESTION = "What happens in the video?"
TEXT_TOKENS = 64  # of a prompt that is not put together, since the model is too large to run
WORKSPACE = 4  # an answer needs about as many times the bytes that its stages leave


@dataclass
class _Way:
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

    @contextmanager
    def _if_it_fits(self) -> Iterator[None]:
        gc.collect()
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            self.note = "the device has too little memory for it"
            self.seconds.clear()
            self.peaks.clear()
        # Not before the error is gone, which holds all that was made up to it.
        if self.note is not None:
            gc.collect()
            torch.cuda.empty_cache()


def bench(
    model: nn.Module,
    processor: Any,
    video: str | Path = DEMO_VIDEO,
    *,
    frames: Sequence[int] = (60,),
    repeats: int = 5,
    max_tokens: int | None = None,
    new_tokens: int = 16,
    question: str = QUESTION,
    progress: Callable[[], object] | None = None,
) -> list[Row]:
    """Measure a model with a budget, and beside it the same model in its `own_way`.

    Each answer is given once for its memory, which also warms up, then `repeats` times for its
    seconds, with and without a budget in turn. FLOPs and bytes are counted from the shapes.

    Args:
        model: wrapped or native. processor: of its host.
        video: read at one frame a second; one that ends too early begins anew.
        frames: how many seconds are read of it: of a video of fewer frames, not so many, which
            the rows tell. new_tokens: of each answer, exactly.
        max_tokens: budget of visual tokens in place of the model's own.
        progress: called after each answer; there are 2 (1 + repeats) of each length.

    Returns:
        Rows of each length, wrapped and then unwrapped; see `Row`.

    Raises:
        ValueError: naming the argument. VideoError: the video cannot be read.
    """
    check_count("repeats", repeats)
    base, frames = _checked(model, frames, new_tokens)
    host, own = host_of(base), own_way(base)
    generate: dict[str, Any] = {
        "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False
    }  # fmt: skip
    took = progress or (lambda: None)

    traces: dict[int, Trace] = {}  # of the answers with a budget, by their frames

    def with_budget(clip: Path, end: float, prefetch: int) -> dict[str, float]:
        trace = ask(
            base, clip, question, processor=processor, max_tokens=max_tokens, end=end,
            encoding=Encoding(prefetch=prefetch), **generate,
        ).trace  # fmt: skip
        traces[trace.frames_decoded] = trace
        return trace.seconds

    def without(clip: Path, end: float, prefetch: int) -> dict[str, float]:
        with ledger() as seconds:
            with stage("decode", on_device=False):  # the packets
                source = open_source(clip, fps=1.0, end=end)
            ask_unwrapped(base, host, processor, own, source, question, prefetch, **generate)
        return seconds

    def bare() -> AbstractContextManager[Any]:
        return unwrapped(base) if isinstance(base, Wrapped) else nullcontext()

    with tempfile.TemporaryDirectory() as folder, whole(video):
        bound, free = [], []
        for seconds in frames:
            clip = at_least(video, seconds, Path(folder))
            shown = len(open_source(clip, fps=1.0, end=seconds))  # fewer, if it has fewer of them
            bound.append(_Way(shown, True, partial(with_budget, clip, seconds)))
            free.append(_Way(shown, False, partial(without, clip, seconds), bare))
        # First all of those that need little memory: what an allocator has once had, it may keep.
        counter = None
        for way in bound:
            with _prompt_lengths(base) as lengths:
                way.measure_memory()
            if counter is None:
                text_tokens = lengths[0] - 1 if lengths else TEXT_TOKENS
                setting = _setting(base, processor, video, question, text_tokens, new_tokens)
                counter = Counter(base, setting)
            trace = traces.get(way.frames) or counter.expected(way.frames, max_tokens)
            way.work, way.tokens = counter.wrapped(trace), trace.num_tokens
            took()
        assert counter is not None  # there is a length
        for way in free:
            way.work, way.tokens = counter.unwrapped(way.frames)
            way.note = too_large(base, way.work, way.tokens, counter.setting)
            if way.note is None:
                way.measure_memory()
            took()
        for pair in zip(bound, free, strict=True):
            for _ in range(repeats):
                for way in pair:
                    if way.note is None:
                        way.measure_time()
                    took()
    return [
        row
        for pair in zip(bound, free, strict=True)
        for way in pair
        for row in rows_of(
            way.work,
            frames=way.frames,
            wrapped=way.wrapped,
            tokens=way.tokens,
            further_tokens=new_tokens - 1,
            seconds=way.seconds,
            peaks=way.peaks,
            note=way.note,
        )
    ]


def count(
    model: nn.Module,
    processor: Any,
    video: str | Path = DEMO_VIDEO,
    *,
    frames: Sequence[int] = (60,),
    max_tokens: int | None = None,
    new_tokens: int = 16,
    question: str = QUESTION,
    note: str = "counted only",
) -> list[Row]:
    """The rows of `bench` for a model that is not run, as one on the meta device.

    As many frames are chosen as may be, and the prompt has 64 tokens of text.

    Args:
        note: why it is not run. For the others see `bench`.
    """
    base, frames = _checked(model, frames, new_tokens)
    with whole(video):
        setting = _setting(base, processor, video, question, TEXT_TOKENS, new_tokens)
    counter = Counter(base, setting)
    rows = []
    for length in frames:
        trace = counter.expected(length, max_tokens)
        own_work, own_tokens = counter.unwrapped(length)
        for wrapped, work, tokens in (
            (True, counter.wrapped(trace), trace.num_tokens),
            (False, own_work, own_tokens),
        ):
            rows += rows_of(
                work, frames=length, wrapped=wrapped, tokens=tokens,
                further_tokens=new_tokens - 1, note=note,
            )  # fmt: skip
    return rows


def too_large(
    model: nn.Module, work: Mapping[str, Work], tokens: int, setting: Setting
) -> str | None:
    """Why an answer with so many visual tokens is not asked for; None: it can be."""
    config: Any = model.config
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    length = setting.text_tokens + tokens + setting.new_tokens
    if context is not None and length > context:
        return f"{length} tokens are more than the {context} of its context"
    # Frames and pixels of a chunk are gone when the next one comes.
    left = sum(done.bytes or 0 for done in work.values() if done.flops is not None)
    room = free_memory(next(model.parameters()).device)
    if room is not None and WORKSPACE * left > room:
        return f"it needs about {WORKSPACE * left / 1e9:.0f} GB, {room / 1e9:.0f} GB are free"
    return None


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device, with those that torch holds and does not use; None where the system
    does not tell."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return None


def _checked(
    model: nn.Module, frames: Sequence[int], new_tokens: int
) -> tuple[nn.Module, list[int]]:
    check_count("new_tokens", new_tokens)
    if not frames:
        raise ValueError("frames: got none, wanted at least one count")
    for length in frames:
        check_count("frames", length)
    base = base_model(model)
    tokenizer_of(base)
    return base, sorted(set(frames))


def _setting(
    model: nn.Module, processor: Any, video: str | Path, question: str, text: int, new: int
) -> Setting:
    frame = next(open_source(video, fps=1.0, end=1.0).read(np.arange(1)))
    pixels = host_of(model).pixels(processor, frame[None])
    return Setting(question, text, new, torch.from_numpy(frame), pixels)


@contextmanager
def _prompt_lengths(model: Any) -> Iterator[list[int]]:
    """Ids of each prompt that is embedded inside, the placeholder among them."""
    lengths: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: lengths.append(inputs[0].shape[1])
    )
    try:
        yield lengths
    finally:
        hook.remove()
