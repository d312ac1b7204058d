"""Videos of which is known what matters: made of vectors, as an image-text model would see them.

Each frame is a unit vector, and so is the question; their cosine is its score. A world is a list of
shots, as films have them, in which a few events are planted that the question is about. What a
selector of frames finds in them says where it is fragile, and nothing of the accuracy that it
brings: real scores and real questions are other ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["events", "faint", "static", "global"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDTH = 512
# Shares of a frame's squared length: what all images have in common, what those of this video,
# of this shot have, a drift within the shot, and noise.
CONE, VIDEO, SHOT, DRIFT, NOISE = 0.50, 0.15, 0.27, 0.05, 0.03
KEPT = 0.95  # of a drift, from one frame to the next
IN_SIGHT, FAINT = 0.08, 0.01  # share of a frame that an event takes which is no shot of its own
REPEATED = 0.3  # of the shots show again what an earlier one showed
SPREAD = 0.025  # standard deviation of a question's cosines within a video
OF_SHOT, OF_DRIFT, OF_FRAME = 0.6, 0.3, 0.1  # shares of its square
SPIKE, SPIKE_EVERY = 0.06, 400  # single frames that score high for no reason


@dataclass(frozen=True)
class World:
    """A video of T seconds, at one frame a second, and a question about it.

    Args:
        features: (T, 512) float32 unit vectors. question: (512,), of the same space.
        events: the frames of each event that the question is about. shot: (T,) which shot each
            frame is of; equal ones show the same.
    """

    features: Tensor
    question: Tensor
    events: tuple[range, ...]
    shot: Ints

    @property
    def seconds(self) -> Tensor:
        return torch.arange(len(self.features), dtype=torch.float64)

    @property
    def scores(self) -> Tensor:
        """(T,) cosines of the frames with the question."""
        return self.features @ self.question

    def rank(self) -> float:
        """How often a frame of an event scores higher than one of none: the area under the ROC."""
        order = self.scores.argsort().argsort().double().numpy()
        inside = np.zeros(len(order), bool)
        for event in self.events:
            inside[event.start : event.stop] = True
        n = int(inside.sum())
        return float((order[inside].sum() - n * (n - 1) / 2) / (n * (len(order) - n)))


def make_world(
    seed: int | list[int], kind: Kind = "events", *, frames: int = 3600, margin: float = 0.06
) -> World:
    """A world that follows from its seed; of one seed and kind, others than `margin` are alike.

    Args:
        kind: "events": two to five of 2 to 20 s, half of them shots of their own, the others 8 %
            of a frame. "faint": 1 % of a frame, never a shot. "static": 8 %, before one camera
            that never cuts. "global": none, and scores that hardly differ from shot to shot.
        frames: T, one a second. margin: how much an event raises the cosine with the question, at
            its middle, give or take 30 %.
    """
    rng = np.random.default_rng(seed)
    shot = _shots(rng, frames, cuts=kind != "static")
    events: list[range] = []
    if kind != "global":
        events = _free_spans(rng, frames, int(rng.integers(2, 6)), (2, 20), [])
    own = [kind == "events" and bool(rng.integers(2)) for _ in events]
    for number, (event, cut) in enumerate(zip(events, own, strict=True)):
        if cut:
            shot[event.start : event.stop] = -1 - number

    names, of = np.unique(shot, return_inverse=True)
    directions = _directions(rng, len(names))
    seen = CONE**0.5 * _directions(np.random.default_rng(0), 1)  # one for all worlds
    seen = seen + VIDEO**0.5 * _directions(rng, 1) + SHOT**0.5 * directions[of]
    seen += DRIFT**0.5 * _drift(rng, of, WIDTH) / WIDTH**0.5
    seen += NOISE**0.5 * _directions(rng, frames)
    share = FAINT if kind == "faint" else IN_SIGHT
    for event, cut in zip(events, own, strict=True):
        if not cut:
            seen[event.start : event.stop] += share**0.5 * _directions(rng, 1)

    spread = SPREAD * (0.3 if kind == "global" else 1)
    scores = rng.uniform(0.18, 0.27) + spread * OF_SHOT**0.5 * rng.standard_normal(len(names))[of]
    scores += SPREAD * OF_DRIFT**0.5 * _drift(rng, of, 1)[:, 0]
    scores += SPREAD * OF_FRAME**0.5 * rng.standard_normal(frames)
    for event in events:
        scores[event.start : event.stop] += margin * rng.uniform(0.7, 1.3) * _hump(len(event))
    if kind != "global":
        for span in _free_spans(rng, frames, int(rng.integers(1, 5)), (5, 40), events):
            scores[span.start : span.stop] += 0.7 * margin * _hump(len(span))
    scores[rng.integers(0, frames, frames // SPIKE_EVERY)] += SPIKE

    question = _directions(rng, 1)[0]
    seen -= np.outer(seen @ question, question)  # so that the scores are just these
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    features = np.sqrt(1 - scores[:, None] ** 2) * seen + np.outer(scores, question)
    return World(
        torch.from_numpy(features).float(), torch.from_numpy(question).float(), tuple(events), shot
    )


def _shots(rng: np.random.Generator, frames: int, *, cuts: bool) -> Ints:
    """(T,) the shot that each frame is of; shots last 5 to 60 s, short ones being as usual."""
    shot, start, made = np.zeros(frames, np.int64), 0, 0
    while cuts and start < frames:
        length = round(exp(rng.uniform(log(5), log(60))))
        again = made and rng.uniform() < REPEATED
        shot[start : start + length] = rng.integers(made) if again else made
        made += not again
        start += length
    return shot


def _free_spans(
    rng: np.random.Generator, frames: int, count: int, length: tuple[int, int], taken: list[range]
) -> list[range]:
    """So many spans at random that touch neither each other nor those that are taken."""
    spans: list[range] = []
    while len(spans) < count:
        seconds = int(rng.integers(length[0], length[1] + 1))
        start = int(rng.integers(frames - seconds))
        span = range(start, start + seconds)
        if all(span.stop < other.start or other.stop < span.start for other in spans + taken):
            spans.append(span)
    return sorted(spans, key=lambda span: span.start)


def _directions(rng: np.random.Generator, count: int) -> Floats:
    """(count, 512) unit vectors that have nothing to do with each other."""
    vectors = rng.standard_normal((count, WIDTH))
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _drift(rng: np.random.Generator, shot: Ints, width: int) -> Floats:
    """(T, width) of variance 1: a walk that is pulled back, begun anew with each shot."""
    steps = rng.standard_normal((len(shot), width))
    for k in range(1, len(shot)):
        if shot[k] == shot[k - 1]:
            steps[k] = KEPT * steps[k - 1] + (1 - KEPT**2) ** 0.5 * steps[k]
    return steps


def _hump(length: int) -> Floats:
    """(length,) that rises to 1 in the middle, and falls."""
    hump: Floats = np.sin(np.pi * (np.arange(length) + 0.5) / length)
    return hump


def longest_gap(chosen: Tensor, frames: int) -> float:
    """The longest stretch without a chosen frame, as a share of the video."""
    edges = torch.cat([torch.tensor([-1]), chosen.sort().values, torch.tensor([frames])])
    return int(edges.diff().max() - 1) / frames
