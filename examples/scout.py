"""What a scout, and sharing looks between frames alike, save of the vision tower's work.

    python examples/scout.py                            # the shipped demo model and its scout

The same videos, through mp4 files, are asked about with the demo's tower looking at every frame,
and with fewer looks. For each kind of video and way of looking:

accuracy  share of right answers, with its 95 % interval
recall    share of the needles asked about that a chosen frame shows
passes    frames that went through the tower for the first question about a video, and for all
FLOPs     how many times fewer tower and scout took together, for the first question
same      share of questions for which just those frames were chosen that every look chose
shared    share of those frames that were chosen; near: or one within a second
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import bvllm_adapters as bvllm
from bvllm_adapters import Encoding
from bvllm_adapters.bench.shapes import flops_of
from bvllm_adapters.evaluation.intervals import share
from bvllm_adapters.evaluation.needle import Haystack, make_haystack
from bvllm_qwen2 import HOST
from bvllm_qwen2.shim import DEMO

EVERY = "every look"
COLUMNS = "accuracy              recall  passes        FLOPs    same  shared  near"


@dataclass
class Way:
    """A way of looking at videos, and what came of it.

    Args:
        look: FLOPs of the tower for a frame; glance: of the scout.
    """

    model: Any
    encoding: Encoding
    look: float
    glance: float
    right: list[list[bool]] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    chosen: list[set[int]] = field(default_factory=list)
    passes: list[tuple[int, int]] = field(default_factory=list)
    every: float = 0.0  # FLOPs, had the tower looked at every frame
    spent: float = 0.0

    def ask(self, processor: Any, video: bvllm.Video, haystack: Haystack) -> None:
        """All questions about a video."""
        opened = bvllm.open_video(self.model, video, processor=processor, encoding=self.encoding)
        right, passes = [], []
        for question in haystack.questions:
            answer = opened.ask(question.text, max_new_tokens=8)
            right.append(answer.text == question.answer)
            passes.append(opened.tower_passes)
            frames = {frame.frame for frame in answer.trace.frames if frame.tokens}
            needles = [haystack.needles[i] for i in question.needles]
            self.chosen.append(frames)
            self.recall.append(fmean(bool(frames & set(needle.seconds)) for needle in needles))
        self.right.append(right)
        self.passes.append((passes[0], passes[-1]))
        glances = len(set(opened.encoded.repeats.rows))
        self.every += len(opened) * self.look
        self.spent += passes[0] * self.look + glances * self.glance

    def row(self, every: Way) -> str:
        """Beside the frames that the way of every look chose."""
        accuracy, low, high = share(self.right)
        first, last = (fmean(counts) for counts in zip(*self.passes, strict=True))
        pairs = list(zip(self.chosen, every.chosen, strict=True))
        same = fmean(found == wanted for found, wanted in pairs)
        shared = fmean(len(found & wanted) / len(wanted) for found, wanted in pairs)
        near = fmean(
            fmean(bool({frame - 1, frame, frame + 1} & found) for frame in wanted)
            for found, wanted in pairs
        )
        return (
            f"{accuracy:.3f} [{low:.3f}, {high:.3f}]  {fmean(self.recall):.3f}"
            f"  {first:>5.1f} {last:>5.1f}  {self.every / self.spent:>5.1f} x"
            f"  {same:>5.2f}  {shared:>6.2f} {near:>5.2f}"
        )


def ways(demo: Any, scouted: Any) -> dict[str, Way]:
    size = demo.image_size
    pixels = torch.zeros(16, 3, size, size)
    look, glance = flops(demo.look, pixels), flops(scouted.balanced_tokenizer.scout, pixels)
    alike = Encoding(skip_similar=1.0)  # levels of 255
    return {
        EVERY: Way(demo, Encoding(), look, 0),
        "frames alike share": Way(demo, alike, look, 0),
        "scout": Way(scouted, Encoding(), look, glance),
        "scout, and share": Way(scouted, alike, look, glance),
    }


def flops(see: Callable[[Tensor], Any], pixels: Tensor) -> float:
    """For each frame, a multiplication and an addition counted as two."""
    return flops_of(lambda: see(pixels))[1] / len(pixels)


def kinds(seed: int, frames: int, videos: int) -> dict[str, list[Haystack]]:
    """Haystacks whose camera pans, as they usually do, and some whose camera stands still."""

    def made(needles: int) -> list[Haystack]:
        return [
            make_haystack([seed, frames, number], num_frames=frames, needles=needles)
            for number in range(videos)
        ]

    still = [
        replace(one, scenes=tuple(replace(scene, last=scene.first) for scene in one.scenes))
        for one in made(8)
    ]
    return {"3 needles": made(3), "8 needles": made(8), "8 needles, still camera": still}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=480, help="of a video, one a second")
    parser.add_argument("--videos", type=int, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapter", type=Path, default=DEMO.with_name("demo_scout"))
    options = parser.parse_args()
    demo, processor = HOST.demo()
    scouted = bvllm.wrap(HOST.demo()[0], adapter=options.adapter)
    for kind, haystacks in kinds(options.seed, options.frames, options.videos).items():
        compared = ways(demo, scouted)
        for haystack in haystacks:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "haystack.mp4"
                haystack.write(file)
                video = bvllm.read_video(file)
            for way in compared.values():
                way.ask(processor, video, haystack)
        print(f"\n{options.frames} frames, {kind:<28}{COLUMNS}")
        for name, way in compared.items():
            print(f"{name:<40} {way.row(compared[EVERY])}")
    one = compared["scout"]
    print(f"\na look of the tower {one.look / 1e6:.2f} MFLOPs, of the scout {one.glance / 1e6:.2f}")


if __name__ == "__main__":
    main()
