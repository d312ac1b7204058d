"""What a line of results tells of how frames were chosen."""

from __future__ import annotations

from typing import Any

from bvllm_adapters.trace import Trace

CHOICE = ("frames_decoded", "selector", "note")
_PASSES = ("tower_passes", "scout_passes")
_OF_FRAME = ("frame", "choices", "tokens", "score")


def compact(trace: Trace) -> dict[str, Any]:
    """What a trace's table tells: without scores of frames that were not chosen, which for an hour
    are more than all other results, and without what says nothing."""
    seconds = {name: round(value, 4) for name, value in trace.seconds.items()}
    return {**_of(trace, *CHOICE, *_PASSES), "seconds": seconds, "frames": frames_told(trace)}


def choice_told(trace: Trace) -> dict[str, Any]:
    """Of the same, what is the same whichever rows were asked before and beside it."""
    return {**_of(trace, *CHOICE), "frames": frames_told(trace)}


def frames_told(trace: Trace) -> list[dict[str, Any]]:
    """The chosen frames, with their times, in time order."""
    frames = []
    for frame in trace.frames:
        told = {name: getattr(frame, name) for name in _OF_FRAME}
        told["second"] = round(frame.second, 3)
        if len(frame.weights) > 1:
            told["weights"] = dict(frame.weights)
        frames.append({name: value for name, value in told.items() if value is not None})
    return frames


def _of(trace: Trace, *names: str) -> dict[str, Any]:
    told = {name: getattr(trace, name) for name in names}
    return {name: value for name, value in told.items() if value is not None}
