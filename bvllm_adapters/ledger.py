"""Seconds and bytes of each stage of what runs, booked where it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_seconds: ContextVar[dict[str, float] | None] = ContextVar("bvllm_seconds", default=None)
_peaks: ContextVar[dict[str, int] | None] = ContextVar("bvllm_peaks", default=None)
_open: ContextVar[_Stage | None] = ContextVar("bvllm_open", default=None)


@contextmanager
def ledger() -> Iterator[dict[str, float]]:
    """Seconds per `stage` of what runs inside, in this thread; stages that recur add up. What is
    booked in a ledger is booked in one around it, too, when the inner one is closed."""
    seconds: dict[str, float] = {}
    around = _seconds.get()
    token = _seconds.set(seconds)
    try:
        yield seconds
    finally:
        _seconds.reset(token)
        if around is not None:
            for name, took in seconds.items():
                around[name] = around.get(name, 0.0) + took


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Peak bytes per `stage` of what runs inside, in this thread: allocated on the CUDA devices
    if any is in use, else resident of the whole process."""
    peaks: dict[str, int] = {}
    token = _peaks.set(peaks)
    try:
        yield peaks
    finally:
        _peaks.reset(token)


@contextmanager
def stage(name: str, *, on_device: bool = True) -> Iterator[None]:
    """Book what runs inside under `name`, if a `ledger` or `peak_memory` is open.

    Of stages within each other, each is booked what it takes without the inner ones.

    Args:
        on_device: whether it starts work on the accelerator, which is waited for then.
    """
    seconds, peaks = _seconds.get(), _peaks.get()
    if seconds is None and peaks is None:
        yield
        return
    if on_device:
        _wait_for_device()
    outer = _open.get()
    if peaks is not None:
        if outer is not None:
            outer.peak = max(outer.peak, _peak())
        _forget_peak()
    this = _Stage()
    token = _open.set(this)
    begin = time.perf_counter()
    try:
        yield
    finally:
        if on_device:
            _wait_for_device()
        took = time.perf_counter() - begin
        _open.reset(token)
        if seconds is not None:
            seconds[name] = seconds.get(name, 0.0) + took - this.within
        if peaks is not None:
            peaks[name] = max(peaks.get(name, 0), this.peak, _peak())
            _forget_peak()
        if outer is not None:
            outer.within += took


@dataclass
class _Stage:
    """A stage that runs: seconds of those within it, and its peak so far."""

    within: float = 0.0
    peak: int = 0


def _devices() -> list[int]:
    """CUDA devices that hold anything: a model may be spread over several."""
    if not torch.cuda.is_initialized():
        return []
    return [i for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i)]


def _wait_for_device() -> None:
    for device in _devices():
        torch.cuda.synchronize(device)


def _forget_peak() -> None:
    if torch.cuda.is_initialized():
        for device in _devices():
            torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux starts its high-water mark anew; elsewhere it is that of the process so far.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    if torch.cuda.is_initialized():
        return sum(torch.cuda.max_memory_allocated(device) for device in _devices())
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def answering() -> Iterator[list[Callable[[Tensor, Tensor], Any]]]:
    """Books what runs inside under "prefill" up to the first logits, then under "generate".

    Gives the `logits_processor` for a call of transformers' generate(); it changes no logits.
    """
    with ExitStack() as running:
        running.enter_context(stage("prefill"))
        first = iter((True,))

        def at_each_token(input_ids: Tensor, scores: Tensor) -> Tensor:
            if next(first, False):
                running.close()
                running.enter_context(stage("generate"))
            return scores

        yield [at_each_token]
