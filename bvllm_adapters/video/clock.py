"""When frames are shown, by the stamps of a file's packets.

Stamps are in ticks: when a packet's frame is shown (pts) and when it is decoded (dts). Formats
differ in which of the two they hold, and joined recordings begin to count anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvllm_adapters.video.frames import Indices, Times

Marks = npt.NDArray[np.bool_]

UNKNOWN = -(2**63)
"""In place of a stamp that a packet does not have."""

DECODING_TIMES = ("avi",)
"""Formats that tell when a packet is decoded and no more: FFmpeg guesses the rest, wrongly where
frames were left out. In the order in which frames are shown, they have those times in turn."""

JOINED = ("mpeg",)
"""Transport and program streams: of one written behind another, both are read."""

MOST_HELD_BACK = 16
"""Frames that a decoder of H.264 or HEVC keeps until those before them have come."""


@dataclass(frozen=True, eq=False)
class Stamps:
    """What P packets say of their frames, in the order of the file, in ticks.

    Args:
        pts, dts, lengths: (P,) when each is shown, when it is decoded (`UNKNOWN` where it does not
            say), and for how long it is shown.
        key, begins, hidden: (P,) whether its container calls it a key frame, decoding can begin
            there, and it is decoded for others only, as an edit list has it.
        corrupt: whether any is marked so by its container. partial: whether the last is.
    """

    pts: Indices
    dts: Indices
    lengths: Indices
    key: Marks
    begins: Marks
    hidden: Marks
    corrupt: bool
    partial: bool


@dataclass(frozen=True, eq=False)
class Timing:
    """When T frames are shown.

    Args:
        order: (T,) the packet of each. shown: (T,) its pts, set right, ascending, in ticks.
        seconds: (T,) from the first. zero: when that is, in s on the file's own clock.
        shifts: (P,) to be added to each packet's stamps; None: they are right.
        duration: s. timed: whether packets tell when frames are shown.
        distinct: whether frames will be known by `shown`, and can come in its order.
    """

    order: Indices
    shown: Indices
    seconds: Times
    zero: float
    shifts: Indices | None
    duration: float
    timed: bool
    distinct: bool


def timing(stamps: Stamps, format_name: str, tick: float, step: float) -> Timing:
    """By the stamps of a format's packets.

    Args:
        tick: s. step: s from frame to frame, where packets do not say.
    """
    pts, lengths, shifts = stamps.pts, stamps.lengths, None
    if format_name == "gif":
        times, lengths = gif_times(lengths)
        shifts = times - pts if (pts != UNKNOWN).all() else None
    elif format_name.startswith(JOINED):
        shifts = shifts_of(pts, stamps.dts, stamps.key)
    if shifts is not None:
        pts = np.where(pts == UNKNOWN, pts, pts + shifts)
    order = np.argsort(pts, kind="stable")
    order = order[~stamps.hidden[order]]
    shown = pts[order]
    ticks = np.sort(stamps.dts[order]) if format_name in DECODING_TIMES else shown
    timed = len(order) > 0 and UNKNOWN not in (shown[0], ticks[0])
    if not timed:
        ticks, tick = np.arange(len(order)), step
    seconds = ticks.astype(np.float64) * tick
    zero = float(seconds[0]) if len(seconds) else 0.0
    length = lengths[order[-1]] * tick if timed and lengths[order[-1]] > 0 else step
    in_reach = reach(np.argsort(np.argsort(order))) <= MOST_HELD_BACK
    return Timing(
        order=order,
        shown=shown,
        seconds=seconds - zero,
        zero=zero,
        shifts=shifts,
        duration=float(seconds[-1] - zero + length) if len(seconds) else step,
        timed=timed,
        distinct=timed and in_reach and bool((np.diff(shown) > 0).all()),
    )


def reach(places: Indices) -> int:
    """By how many places frames have moved at most; `places` has where each was."""
    return int(np.abs(places - np.arange(len(places))).max(initial=0))


def shifts_of(pts: Indices, dts: Indices, is_key: Marks) -> Indices | None:
    """(P,) ticks to add to each packet's stamps so that a clock that was set anew goes on; None:
    it never was.

    Args:
        pts, dts: (P,) in the order of the file. A single stamp that is out of line, as when it is
            damaged, is no new clock.
        is_key: (P,) whether decoding may begin there, as recordings do.
    """
    told = np.flatnonzero(dts != UNKNOWN)
    clock = dts[told]
    steps = np.diff(clock)
    if not (steps <= 0).any():
        return None
    usual = int(np.median(steps[steps > 0])) if (steps > 0).any() else 1
    back = [i for i in (np.flatnonzero(steps <= 0) + 1).tolist() if is_key[told[i]]]
    begins = told[[i for i in back if _is_new_clock(clock, i, usual)]].tolist()
    if not begins:
        return None
    shifts = np.zeros(len(dts), np.int64)
    shown = np.where(pts == UNKNOWN, dts, pts)
    end = 0
    for begin, after in zip([0, *begins], [*begins, len(dts)], strict=True):
        part = np.sort(shown[begin:after][shown[begin:after] != UNKNOWN])
        if begin:
            shifts[begin:after] = end - part[0]
        step = int(np.median(np.diff(part))) if len(part) > 1 else usual
        end = int(part[-1] + shifts[begin] + step)
    return shifts


def _is_new_clock(clock: Indices, i: int, usual: int) -> bool:
    """Whether packets go on from the stamp at `i`, rather than from those before it."""
    before = clock[i - 1]
    if i >= 2 and clock[i] > clock[i - 2] and before - clock[i - 2] > 8 * usual:
        return False  # it was the one before that was out of line
    return i + 1 == len(clock) or clock[i] == before or clock[i] <= clock[i + 1] <= before


def gif_times(lengths: npt.NDArray[np.int64]) -> tuple[Indices, Indices]:
    """(T,) times and lengths in ticks of 1/100 s: delays below two are shown as ten, as browsers
    and FFmpeg's own player do."""
    shown = np.where(lengths < 2, 10, lengths)
    return np.cumsum(shown) - shown, shown


def filled(times: Times, step: float) -> Times:
    """(T,) seconds in which those that are missing (NaN) come a step after the one before."""
    known = np.flatnonzero(~np.isnan(times))
    if len(known) == len(times):
        return times
    if not len(known):
        return np.arange(len(times), dtype=np.float64) * step
    places = np.arange(len(times), dtype=np.int64)
    last = np.searchsorted(known, places, side="right") - 1
    before = known[np.maximum(last, 0)]
    return times[before] + (places - before).astype(np.float64) * step
