"""What a line of results tells of how frames were chosen."""

from __future__ import annotations

from typing import Any

from bvllm_adapters.trace import Trace

_CHOICE = ("frames_decoded", "selector", "note")
_PASSES = ("tower_passes", "scout_passes")
_OF_FRAME = ("frame", "choices", "tokens", "score")


def compact(trace: Trace) -> dict[str, Any]:
    """What a trace's table tells: without scores of frames that were not chosen, which for an hour
    are more than all other results, and without what says nothing."""
    seconds = {name: round(value, 4) for name, value in trace.seconds.items()}
    return {**choice_told(trace), **_of(trace, *_PASSES), "seconds": seconds}


def choice_told(trace: Trace, *of_frame: str) -> dict[str, Any]:
    """Of the same, what is the same whichever rows were asked before and beside it.

    Args:
        of_frame: what is told of each frame, beside its time; none: all.
    """
    frames = []
    for frame in trace.frames:
        told = {**_of(frame, *(of_frame or _OF_FRAME)), "second": round(frame.second, 3)}
        if len(frame.weights) > 1:
            told["weights"] = dict(frame.weights)
        frames.append(told)
    return {**_of(trace, *_CHOICE), "frames": frames}


def _of(what: object, *names: str) -> dict[str, Any]:
    """What it says under these names, if it is anything."""
    told = {name: getattr(what, name) for name in names}
    return {name: value for name, value in told.items() if value is not None}
