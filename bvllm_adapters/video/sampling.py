"""Which frames of a video are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np

from bvllm_adapters.checks import check_count
from bvllm_adapters.video.frames import Indices, Times

SLACK = 1e-3  # s, by which a frame may come late: some containers round to milliseconds


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are read; see `read_video` for what each field means.

    Raises:
        ValueError, TypeError: naming the field, what came and what was wanted.
    """

    fps: float | None = None
    start: float | None = None
    end: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        first = self.start
        _check_number("fps", self.fps, "a finite number > 0", lambda value: 0 < value < math.inf)
        _check_number("start", first, "a finite number >= 0", lambda value: 0 <= value < math.inf)
        _check_number("end", self.end, f"more than start={first or 0}", lambda x: x > (first or 0))
        if self.max_frames is not None:
            check_count("max_frames", self.max_frames)

    def pick(self, times: Times, duration: float) -> Indices:
        """Indices of the frames on screen at `start + k / fps` for k = 0, 1, ... before `end`.

        Frame i is on screen from `times[i]` to `times[i + 1]`, the last one until `duration`; the
        result holds i if a moment `start + k / fps` falls in there. None for `fps`: all frames on
        screen between `start` and `end`. Empty if the window begins after the last frame.

        >>> Sampling(fps=1).pick(np.array([0.0, 0.4, 2.5, 2.6]), 3.2).tolist()  # 0, 1, 2 and 3 s
        [0, 1, 3]
        """
        start = self.start or 0.0
        end = math.inf if self.end is None else self.end
        edges = np.append(times, duration)
        gaps = np.diff(edges, prepend=-1.0)
        late = np.minimum(SLACK, gaps / 2)
        if self.fps is None:
            end = max(end, start + 2 * SLACK)
            seen = (edges[1:] - late[1:] > start) & (edges[:-1] + late[:-1] <= end)
        else:
            appears = np.clip(edges - late, start, end)
            # How many of the moments have passed by then; rounded, so that 0.6 * 10 is 6.
            moments = np.ceil(np.round((appears - start) * self.fps, 6))
            seen = np.diff(moments) > 0
        chosen = np.flatnonzero(seen & (gaps[1:] > 0))  # the last of those at one time
        if self.max_frames is not None and len(chosen) > self.max_frames:
            last = len(chosen) - 1
            even = [last / 2] if self.max_frames == 1 else np.linspace(0, last, self.max_frames)
            chosen = chosen[np.round(even).astype(np.int64)]
        return chosen


def _check_number(name: str, value: object, wanted: str, good: Callable[[float], bool]) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), wanted {wanted} or None")
    if not good(float(value)):
        raise ValueError(f"{name}: got {value}, wanted {wanted} or None")
