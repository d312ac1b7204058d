"""Asking a model the same with a budget and without: how long, how much work, how much memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.bench.clips import whole
from bvllm_adapters.bench.counted import Counter
from bvllm_adapters.bench.rows import Row, rows_of
from bvllm_adapters.bench.ways import TEXT_TOKENS, Asking, setting_of
from bvllm_adapters.checks import check_count
from bvllm_adapters.evaluation.needle import DEMO_VIDEO
from bvllm_adapters.hosts.base import base_model, tokenizer_of

QUESTION = "What happens in the video?"


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
    took = progress or (lambda: None)
    asking = Asking(base, processor, question, max_tokens, new_tokens)
    with tempfile.TemporaryDirectory() as folder, whole(video):
        pairs = [asking.ways(video, seconds, Path(folder)) for seconds in frames]
        bound, free = zip(*pairs, strict=True)
        # First all of those that need little memory: what an allocator has once had, it may keep.
        counter = asking.memory_with_budget(bound, video, took)
        asking.memory_without(free, counter, took)
        for pair in pairs:
            for _ in range(repeats):
                for way in pair:
                    if way.note is None:
                        way.measure_time()
                    took()
    return [row for pair in pairs for way in pair for row in way.rows(new_tokens)]


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
        setting = setting_of(base, processor, video, question, TEXT_TOKENS, new_tokens)
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
