"""Provenance as plain data: what an answer was given from, and how long each stage took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bvllm_adapters.features import VisualTokens

_seconds: ContextVar[dict[str, float] | None] = ContextVar("bvllm_seconds", default=None)
_peaks: ContextVar[dict[str, int] | None] = ContextVar("bvllm_peaks", default=None)
_open: ContextVar[_Stage | None] = ContextVar("bvllm_open", default=None)


@contextmanager
def ledger() -> Iterator[dict[str, float]]:
    """Seconds per `stage` of what runs inside, in this thread; stages that recur add up."""
    seconds: dict[str, float] = {}
    token = _seconds.set(seconds)
    try:
        yield seconds
    finally:
        _seconds.reset(token)


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


@dataclass(frozen=True)
class FrameTrace:
    """One chosen frame, or several near-equal ones that became one.

    Args:
        frame: index of the main one among the frames read. second: its time in the video.
        weights: frame index -> weight, summing to 1; left out below 0.001.
        choices: of the selector that fell on it. tokens: that it got.
    """

    frame: int
    second: float
    weights: dict[int, float]
    choices: float
    tokens: int


@dataclass(frozen=True)
class Trace:
    """Where an answer's visual tokens come from.

    Args:
        frames_decoded: frames read from the source. frames: the chosen ones, in time order.
        num_tokens: visual tokens given to the language model. max_tokens: the budget, or None.
        seconds: stage -> seconds that it took; decoding and preprocessing run beside the tower, so
            that the sum may exceed the time that went by. Of a batch of questions, that of all.
        tower_passes: frames of this video that went through the vision tower up to now, those seen
            again included; None where it is not known.
    """

    frames_decoded: int
    frames: tuple[FrameTrace, ...]
    num_tokens: int
    max_tokens: int | None
    seconds: dict[str, float]
    tower_passes: int | None = None

    @classmethod
    def of(
        cls,
        tokens: VisualTokens,
        *,
        max_tokens: int | None,
        seconds: dict[str, float],
        tower_passes: int | None = None,
    ) -> Trace:
        selection = tokens.selection
        counts = torch.bincount(tokens.slot, minlength=len(selection)).tolist()
        frames = []
        for row, (frame, choices, count) in enumerate(
            zip(selection.frame.tolist(), selection.size.tolist(), counts, strict=True)
        ):
            weights = selection.weights[row]
            shown = (weights >= 1e-3).nonzero().squeeze(1).tolist()
            frames.append(
                FrameTrace(
                    frame=frame,
                    second=float(tokens.seconds[frame]),
                    weights={i: float(weights[i]) for i in shown},
                    choices=choices,
                    tokens=count,
                )
            )
        return cls(
            frames_decoded=selection.weights.shape[1],
            frames=tuple(frames),
            num_tokens=len(tokens),
            max_tokens=max_tokens,
            seconds=dict(seconds),
            tower_passes=tower_passes,
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts and lists, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table: the chosen frames with their times and tokens, the total, the seconds."""
        seen = "" if self.tower_passes is None else f", {self.tower_passes} through the tower"
        lines = [
            f"frames    {self.frames_decoded} decoded, {len(self.frames)} chosen{seen}",
            "          frame   second  choices  tokens",
        ]
        lines += [
            f"{frame.frame:>15}{frame.second:>9.2f}{frame.choices:>9.3g}{frame.tokens:>8}"
            for frame in self.frames
        ]
        budget = "no limit" if self.max_tokens is None else f"a budget of {self.max_tokens}"
        lines.append(f"tokens    {self.num_tokens} visual tokens of {budget}")
        lines.append("seconds   " + ", ".join(f"{k} {v:.3f}" for k, v in self.seconds.items()))
        return "\n".join(lines)
