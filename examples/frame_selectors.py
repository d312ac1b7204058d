"""What selectors without training find: in planted worlds, on the needle task, in moving footage.

    python examples/frame_selectors.py worlds               # an hour; a question's scores, and none
    python examples/frame_selectors.py worlds --frames 600  # ten minutes
    python examples/frame_selectors.py needles              # beside the demo's learned selector
    python examples/frame_selectors.py answers              # what becomes of the demo's answers
    python examples/frame_selectors.py footage              # cuts, a shaking hand, a still camera

Each takes minutes of one core, and seconds with --quick. Tables are Markdown; shares and the
differences of pairs come with 95 % intervals. K: how many frames are chosen; w: the seconds before
and after a frame that its novelty is held against; r = 0: without novelty. What there is to find is
made by planted_worlds.py and footage.py. The demo's tower was trained on needles of the same kind,
so its features favour them.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from footage import FOOTAGE, make_footage
from found import Tallies, write_table
from selectors_in_worlds import BASELINES, NOVELTY, worlds
from torch import Tensor, nn

import bvllm_adapters as bvllm
from bvllm_adapters import Encoding, FrameFeatures
from bvllm_adapters.evaluation.needle import Haystack
from bvllm_adapters.evaluation.needle_accuracy import evaluate
from bvllm_adapters.features import Selection
from bvllm_adapters.selectors.coverage import CoverageSelector
from bvllm_adapters.selectors.names import named_selector
from bvllm_qwen2 import HOST

LEARNED = "learned, of those asked about"


@dataclass(frozen=True)
class Watched:
    """What was seen of a video, through an mp4 file.

    Args:
        thumbnails: (T, C') of its frames. features: what the demo's tower made of each.
    """

    haystack: Haystack
    thumbnails: Tensor
    features: FrameFeatures

    def choose(self, selector: nn.Module, num_frames: int, question: str = "") -> Selection:
        """By thumbnails or, for a selector that does not see itself, by the tower's features."""
        features = self.thumbnails if selector.sees else self.features.cls
        chosen: Selection = selector(
            features, question, seconds=self.features.seconds, num_frames=num_frames
        )
        return chosen


def watch(model: Any, processor: Any, haystack: Haystack) -> Watched:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "haystack.mp4"
        haystack.write(file)
        video = bvllm.read_video(file)
    frames = torch.from_numpy(video.frames).permute(0, 3, 1, 2).float() / 255
    opened = bvllm.open_video(model, video, processor=processor, encoding=Encoding(patches="keep"))
    return Watched(haystack, CoverageSelector().see(frames), opened.features)


def footage_selectors() -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {}
    for by in ("thumbnails", "tower"):
        made |= {f"{by}, {name}": CoverageSelector(by=by, **how) for name, how in NOVELTY.items()}
        made |= {f"{by}, w = 40, {name}": named_selector(name, by=by) for name in BASELINES}
    return made | {name: named_selector(name).eval() for name in ("uniform", "random")}


def shown(
    kinds: Mapping[tuple[str, int], Sequence[int]], videos: int, seed: int, *, learned: bool
) -> None:
    """The share of eight needles that the chosen frames show.

    Args:
        kinds: of footage, and its frames -> K. learned: beside the demo's own selector, which
            chooses for each question, and is measured by the needles asked about.
    """
    model, processor = HOST.demo()
    selectors, tallies = footage_selectors(), Tallies()
    columns: dict[int, list[str]] = {}
    for (kind, frames), counts in kinds.items():
        column = {count: f"{kind}, {frames} frames, K = {count}" for count in counts}
        for count in counts:
            columns.setdefault(count, []).append(column[count])
        for number in range(videos):
            watched = watch(model, processor, make_footage(kind, seed, number, frames=frames))
            needles = [set(needle.seconds) for needle in watched.haystack.needles]
            for count in counts:
                for name, selector in selectors.items():
                    chosen = set(watched.choose(selector, count, str(number)).frame.tolist())
                    found = [bool(needle & chosen) for needle in needles]
                    tallies[name, column[count]].found.append(found)
                if learned and count == model.balanced_tokenizer.config.num_frames:
                    tallies[LEARNED, column[count]].found.append(asked_about(model, watched))
    print(f"{videos} videos of each kind, 8 needles of one or two seconds in each\n")
    for _, told in sorted(columns.items()):
        tallies.write("needles shown", told)
        tallies.write_beside("thumbnails, w = 40", told, selectors)


def asked_about(model: Any, watched: Watched) -> list[bool]:
    """Of the needles of all questions, whether a frame chosen for the question shows them."""
    tokenizer, found = model.balanced_tokenizer, []
    for question in watched.haystack.questions:
        chosen = tokenizer.select(watched.features, tokenizer.question_tokenizer(question.text))
        taken = set(chosen.frame.tolist())
        asked = (watched.haystack.needles[i] for i in question.needles)
        found += [bool(taken & set(needle.seconds)) for needle in asked]
    return found


class Instead(nn.Module):
    """A selector without training where the demo's learned one was.

    Args:
        num_frames: K.
    """

    watched: Watched  # the video that is asked about

    def __init__(self, selector: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.selector, self.num_frames = selector, num_frames

    def forward(self, cls: Tensor, text_ids: Tensor, **_: Any) -> Selection:
        return self.watched.choose(self.selector, self.num_frames)


def answers(lengths: Sequence[int], videos: int, seed: int) -> None:
    """The demo's answers with other selectors in it, within the same budget of visual tokens."""
    model, processor = HOST.demo()
    selectors = {
        "uniform": named_selector("uniform"),
        "thumbnails, w = 40": CoverageSelector(),
        "tower, w = 40": CoverageSelector(by="tower"),
    }
    models, others = {f"learned, K = {model.balanced_tokenizer.config.num_frames}": model}, []
    for count in (4, 8, 16):
        for name, selector in selectors.items():
            others.append(Instead(selector, count))
            # A deep copy shares what its memo holds already: here the tower.
            other = copy.deepcopy(model, {id(model.vision_tower): model.vision_tower})
            other.balanced_tokenizer.frame_selector = others[-1]
            models[f"{name}, K = {count}"] = other

    def see(haystack: Haystack) -> FrameFeatures:
        watched = watch(model, processor, haystack)
        for instead in others:
            instead.watched = watched
        return watched.features

    for needles in (3, 8):
        rows = evaluate(
            models, processor, frames=lengths, needles=needles, videos=videos, seed=seed, watch=see
        )
        told = {
            (row.method, row.frames): f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}], "
            f"{row.recall:.2f}"
            for row in rows
        }
        write_table(
            [f"{needles} needles", *(f"{n} frames: accuracy, needles shown" for n in lengths)],
            ([name, *(told[name, length] for length in lengths)] for name in models),
        )
    print(f"{videos} videos of each kind, {rows[0].budget} visual tokens a question")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=["worlds", "needles", "answers", "footage"])
    parser.add_argument("--frames", type=int, help="of worlds (3600), of footage (256)")
    parser.add_argument("--videos", type=int, help="of each kind (40 worlds, 25 others)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few short ones")
    options = parser.parse_args()
    quick, seed = options.quick, options.seed
    videos = options.videos or (3 if quick else 40 if options.table == "worlds" else 25)
    if options.table == "worlds":
        worlds(options.frames or (300 if quick else 3600), videos, seed)
    elif options.table == "answers":
        answers((64,) if quick else (64, 512), videos, seed)
    elif options.table == "needles":
        kinds = {("pan", 64): (4, 8)}
        if not quick:
            kinds |= {("pan", 256): (4, 8, 16, 32), ("pan", 512): (4, 8, 16, 32)}
        shown(kinds, videos, seed, learned=True)
    else:
        frames = options.frames or (64 if quick else 256)
        shown({(kind, frames): (8, 16) for kind in FOOTAGE}, videos, seed, learned=False)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
