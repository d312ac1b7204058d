"""Footage of the needle task's photographs, taken as people take it: cut, shaken, or from a stand.

The needles, and the questions about them, are those of a haystack; what lies behind them differs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from bvllm_adapters.evaluation.needle import Haystack, Scene, draw_scenes, make_haystack

FOOTAGE = ("pan", "still", "shaken", "cut", "flashes")
SHAKE = 0.02  # of the frame's side: standard deviation of where a frame lies
SHOT = (3, 12)  # seconds from one cut to the next
FLASH, FLASH_EVERY = 0.3, 24  # of full white, which is added; seconds


def make_footage(kind: str, seed: int, number: int, *, frames: int, needles: int = 8) -> Haystack:
    """A haystack before a background of a kind; of one seed and number, the needles are the same.

    Args:
        kind: "pan": one to three slow pans, as the needle task has them. "still": those, but the
            camera stands still. "shaken": still, but in a hand: each frame lies a little
            elsewhere. "cut": pans of 3 to 12 s. "flashes": still, and single frames are lighter.
    """
    haystack = make_haystack([seed, frames, number], num_frames=frames, needles=needles)
    rng = np.random.default_rng([seed, frames, number, 1])
    scenes = haystack.scenes
    if kind == "cut":
        scenes = _cut(rng, frames)
    elif kind != "pan":
        scenes = tuple(replace(scene, last=scene.first) for scene in scenes)
    if kind in ("shaken", "flashes"):
        lit = set(rng.choice(frames, frames // FLASH_EVERY, replace=False).tolist())
        scenes = tuple(
            _shaken(rng, scene) if kind == "shaken" else _lit(scene) if second in lit else scene
            for second, scene in enumerate(_each_second(scenes, frames))
        )
    return replace(haystack, scenes=scenes)


def _cut(rng: np.random.Generator, frames: int) -> tuple[Scene, ...]:
    starts = [0]
    while starts[-1] < frames:
        starts.append(starts[-1] + int(rng.integers(SHOT[0], SHOT[1] + 1)))
    # One scene of those drawn for so long a video, each time, in the place that the cuts give it.
    return tuple(
        replace(draw_scenes(rng, end - start, "test")[0], start=start, end=end)
        for start, end in pairwise(starts)
    )


def _each_second(scenes: tuple[Scene, ...], frames: int) -> list[Scene]:
    """The same from a camera that stands still, as a scene for each second."""
    at = [next(s for s in reversed(scenes) if s.start <= second) for second in range(frames)]
    return [replace(scene, start=k, end=k + 1) for k, scene in enumerate(at)]


def _shaken(rng: np.random.Generator, scene: Scene) -> Scene:
    zoom = min(scene.zoom, 0.8)  # a window of the whole photograph has no room to shake in
    room = 1 / zoom - 1  # in sides of the frame
    down, right = np.clip(np.array(scene.first) + rng.normal(0, SHAKE / room, 2), 0, 1).tolist()
    return replace(scene, zoom=zoom, first=(down, right), last=(down, right))


def _lit(scene: Scene) -> Scene:
    return replace(scene, tint=tuple((*row[:3], row[3] + FLASH) for row in scene.tint))
