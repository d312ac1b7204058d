"""The table of planted worlds: what is found in them, by a question's scores and without."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch
from found import Tallies, Tally, write_table
from planted_worlds import World, make_world
from torch import Tensor, nn

from bvllm_adapters.selectors.coverage import CoverageSelector
from bvllm_adapters.selectors.names import CHOOSING, named_selector
from bvllm_adapters.selectors.relevance import RelevanceSelector

NOVELTY: dict[str, dict[str, Any]] = {
    "r = 0": {"novelty_seconds": None},
    "w = 3": {"novelty_seconds": 3},
    "w = 15": {"novelty_seconds": 15},
    "w = 40": {"novelty_seconds": 40},
    "w = 3, smoothed": {"novelty_seconds": 3, "smooth_seconds": 3},
    "w = 40, smoothed": {"novelty_seconds": 40, "smooth_seconds": 3},
}
BASELINES = ("top-k", "best-of-bins", "inverse-transform")  # other ways to choose by the same r

# What is planted, and how much that raises a score -> K, how many frames are chosen.
WORLDS: dict[tuple[Any, float], tuple[int, ...]] = {
    ("events", 0.06): (8, 32, 64),
    ("events", 0.0): (8, 32),
    ("events", 0.03): (8, 32),
    ("events", 0.09): (32,),
    ("faint", 0.06): (32,),
    ("static", 0.06): (8, 32),
    ("global", 0.06): (32,),
}
USUAL, GLOBAL = "events .06, K = 32", "global .06, K = 32"


class PlantedRelevance(RelevanceSelector):
    """`RelevanceSelector`, but for a scout: frames and questions of a world are vectors already."""

    def __init__(self, **settings: Any) -> None:
        parts = ("tokenizer", "numbers", "image_processor")
        nothing: Any = SimpleNamespace(model=nn.Identity(), family="", **dict.fromkeys(parts))
        super().__init__(nothing, **settings)
        self.question = torch.empty(0)

    def read(self, text: str) -> list[str]:
        return [text]

    def embed(self, parts: Sequence[str]) -> Tensor:
        return self.question[None]


def world_selectors() -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Those that a question's scores lead, and those that are blind to it."""
    led: dict[str, nn.Module] = {
        "relevance": PlantedRelevance(),
        "relevance, not smoothed": PlantedRelevance(smooth_seconds=0),
        "relevance, no floor": PlantedRelevance(coverage=0),
        "relevance, diversity .3": PlantedRelevance(diversity=0.3),
        "relevance, diversity .7": PlantedRelevance(diversity=0.7),
        "relevance + .5 novelty": PlantedRelevance(novelty=0.5),
    }
    led |= {f"{name}, by relevance": PlantedRelevance(**CHOOSING[name]) for name in BASELINES}
    blind: dict[str, nn.Module] = {
        f"coverage, {name}": CoverageSelector(by="tower", **how) for name, how in NOVELTY.items()
    }
    return led, blind | {name: named_selector(name).eval() for name in ("uniform", "random")}


def worlds(frames: int, videos: int, seed: int) -> None:
    """Shares of events found, gaps, shots and cost of each selector, then their differences."""
    led, blind = world_selectors()
    tallies = Tallies()
    ranks: dict[float, list[float]] = {}
    product = 0.0  # CPU seconds that one number for each frame takes, as a question's scores do
    for (kind, margin), counts in WORLDS.items():
        columns = {
            count: f"{kind} {margin:.2f}, K = {count}".replace("0.", ".") for count in counts
        }
        for number in range(videos):
            world = make_world([seed, number], kind, frames=frames, margin=margin)
            if kind == "events":
                ranks.setdefault(margin, []).append(world.rank())
            for name, selector in {**led, **blind}.items():
                if isinstance(selector, PlantedRelevance):
                    selector.question = world.question
                for count, column in columns.items():
                    tally = tallies[name, column]
                    begun = time.process_time()
                    chosen = selector(
                        world.features, str(number), seconds=world.seconds, num_frames=count
                    )
                    tally.cost += time.process_time() - begun
                    tell(tally, world, chosen.frame)
            if USUAL in columns.values():
                begun = time.process_time()
                world.features @ world.question
                product += time.process_time() - begun

    print(f"{frames} frames, {videos} videos of each kind. Of a frame within an event and one in")
    print("none, so often the one within scores higher:", end=" ")
    print(", ".join(f"{fmean(rank):.2f} ({margin})" for margin, rank in ranks.items()), end="\n\n")
    kinds = [kind for kind in dict.fromkeys(kind for _, kind in tallies) if kind != GLOBAL]
    tallies.write("events found", kinds)
    write_table(
        ["K = 32", "gap, events", "gap, global", "shots, global", "CPU time"],
        (
            [
                name,
                f"{fmean(tallies[name, USUAL].gaps):.2f}",
                f"{fmean(tallies[name, GLOBAL].gaps):.2f}",
                f"{fmean(tallies[name, GLOBAL].shots):.2f}",
                f"{tallies[name, USUAL].cost / product:.1f}",
            ]
            for name in {**led, **blind}
        ),
    )
    print("CPU time: in products of all frames' features with the question's\n")
    tallies.write_beside("relevance", kinds, led)
    tallies.write_beside("coverage, w = 40", kinds, blind)


def tell(tally: Tally, world: World, chosen: Tensor) -> None:
    """What the (K,) chosen frames, in time order, showed of a world."""
    frames = len(world.features)
    taken = set(chosen.tolist())
    if world.events:
        tally.found.append([bool(taken & set(event)) for event in world.events])
    edges = torch.tensor([-1, *chosen.tolist(), frames])
    tally.gaps.append(int(edges.diff().max() - 1) / frames)
    shown = len(set(world.shot[chosen.numpy()].tolist()))
    tally.shots.append(shown / min(len(taken), len(set(world.shot.tolist()))))
