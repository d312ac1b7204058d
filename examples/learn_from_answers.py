"""Which frames matter, learnt from answers alone: what was tried, each with several seeds.

    python examples/learn_from_answers.py --work answers     # goes on where it was stopped

Tower and reading stage are those of train_demo.py, trained once, and stay as they are unless a way
says otherwise; each way and seed begins with a new selector. No way hears which frames are asked
about, but "told", which the others are compared with. Writes learn_from_answers.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from answer_lessons import AnswerLearner
from needle_bank import Bank, Example, examples, make_clips
from needle_lessons import FrameLabels
from needle_study import VIDEO_SEED, over_seeds, table
from safetensors.torch import load_file
from small_model import WIDTH
from torch import Tensor, nn
from train_demo import (
    Steps,
    build,
    learn_jointly,
    learn_to_read,
    once,
    optimize,
    readers_of,
    see,
    see_all,
    shrink,
)

from bvllm_adapters.evaluation.needle import make_haystack

MEASURED = (64, 256)  # frames of the videos that are measured on
Loss = Callable[[float], Tensor]
"""How much of a phase is done, from 0 to 1 -> the loss of a step."""


@dataclass(frozen=True)
class Phase:
    """What a selector learns by for a while.

    Args:
        lesson: of a learner, a loss. readers: whether what reads is trained, too.
    """

    lesson: Callable[[AnswerLearner], Loss]
    steps: int
    readers: bool = False


@dataclass(frozen=True)
class Way:
    """Phases one after another, for about as many seconds as any other way's.

    Args:
        queries: standard deviation of the queries at first; None: as they come.
        joint: whether the demo's last stage comes behind them, which trains what reads, too.
    """

    told: str
    phases: tuple[Phase, ...] = ()
    queries: float | None = None
    joint: bool = False


def softly(steps: int = 400, *, readers: bool = False, **settings: Any) -> Phase:
    return Phase(lambda learner: partial(learner.softly, **settings), steps, readers)


COVER = Phase(lambda learner: learner.cover(), 250)
BY_FRAMES = Phase(lambda learner: learner.by_frames, 250)
BY_SETS = Phase(lambda learner: learner.by_sets, 400)
BY_DIFFERENCE = Phase(lambda learner: learner.by_difference, 400)
LONG = (replace(BY_FRAMES, steps=375), replace(BY_SETS, steps=600))
WAYS = {
    "untrained": Way("nothing: a new selector"),
    "told": Way("which frames are asked about, as the demo's", (COVER,)),
    "soft": Way("answers, softly: as the study's, for a while", (softly(),)),
    "frames_sets": Way(
        "the reader's likelihood of the answer: single frames, then sets",
        (replace(BY_FRAMES, steps=125), replace(BY_SETS, steps=200)),
    ),
    "frames_difference": Way(
        "the reader's likelihood of the answer: single frames, then what each adds",
        (replace(BY_FRAMES, steps=125), replace(BY_DIFFERENCE, steps=200)),
    ),
    "frames": Way("the reader's likelihood of the answer, by single frames", (BY_FRAMES,)),
    "sets": Way("the same by sets: policy gradient", (BY_SETS,)),
    "difference": Way("the same by what each frame adds to the others", (BY_DIFFERENCE,)),
    "hard": Way("answers, straight-through", (softly(hard=True),)),
    "all_parts": Way("answers, softly; what reads is trained, too", (softly(readers=True),)),
    "apart": Way(
        "answers, softly; choices held apart and, at first, spread",
        (softly(apart=0.3, spread=0.3),),
    ),
    "teacher": Way(
        "covered MMR's frames for a quarter of the time, then answers, softly",
        (Phase(lambda it: it.as_coverage, 100), softly(300)),
    ),
    "diverse": Way("answers, softly; queries that differ from the start", (softly(),), 1.0),
    "needles": Way("answers, softly; two needles at first, then more", (softly(needles=True),)),
    "prototype": Way(
        "answers, softly; queries differ from the start, few needles first, what reads is trained",
        (softly(readers=True, needles=True),),
        1.0,
    ),
    "frames_sets_long": Way("single frames, then sets, three times as long", LONG),
    "long": Way("answers, softly, three times as long", (softly(1200),)),
    "told_joint": Way(
        "which frames are asked about, then all parts from answers, as the demo's",
        (COVER,),
        joint=True,
    ),
    "frames_sets_joint": Way(
        "single frames, then sets, three times as long, then all parts from answers",
        LONG,
        joint=True,
    ),
}


class Trials:
    """What each way and seed came to, from the work folder where it is there."""

    def __init__(self, work: Path, steps: Steps, videos: int, scale: float) -> None:
        self.work, self.steps, self.videos, self.scale = work, steps, videos, scale
        model, processor = build("bvllm", 0)
        self.bank = see_all(model, processor, work, steps)
        if not (work / "test_bank.safetensors").exists():
            clips = make_clips(100, split="test", seed=1, shrink=shrink)
            see(model, processor, clips).save(work / "test_bank.safetensors")
        self.test_bank = Bank.load(work / "test_bank.safetensors")
        self.learner(0)  # reads, from here on

    def learner(self, seed: int, queries: float | None = None) -> AnswerLearner:
        """A model whose tower and reading stage are trained, and whose selector is new."""
        model, processor = build("bvllm", 0)
        model.vision_tower.load_state_dict(load_file(self.work / "tower.safetensors"))
        reader = AnswerLearner(model, processor, self.bank, 0)
        once(
            self.work / "reading_bvllm_0.safetensors",
            readers_of(model),
            lambda: learn_to_read(reader, FrameLabels(WIDTH), self.steps.reading),
        )
        new, _ = build("bvllm", seed)
        model.balanced_tokenizer.frame_selector = new.balanced_tokenizer.frame_selector
        if queries is not None:
            nn.init.normal_(new.balanced_tokenizer.frame_selector.queries, std=queries)
        model.requires_grad_(False).train()
        return AnswerLearner(model, processor, self.bank, seed)

    def result(self, name: str, seed: int) -> dict[str, Any]:
        """Of a way and seed: seconds of the processor, and what `measured` says."""
        file = self.work / "ways" / f"{name}_{seed}.json"
        if not file.exists():
            way, seconds = WAYS[name], 0.0
            learner = self.learner(seed, way.queries)
            for phase in way.phases:
                trained: list[nn.Module] = [learner.selector]
                trained += [readers_of(learner.model)] if phase.readers else []
                parameters = [p.requires_grad_() for m in trained for p in m.parameters()]
                began = time.process_time()
                steps = max(2, round(phase.steps * self.scale))
                optimize(name, phase.lesson(learner), parameters, steps=steps, lr=2e-3)
                seconds += time.process_time() - began
            if way.joint:
                began = time.process_time()
                readers_of(learner.model).requires_grad_()
                learn_jointly(learner, self.steps.joint)
                seconds += time.process_time() - began
            file.parent.mkdir(exist_ok=True)
            found = {"seconds": seconds, "lengths": self.measured(learner)}
            file.write_text(json.dumps(found))
            print(name, seed, found, flush=True)
        return json.loads(file.read_text())  # type: ignore[no-any-return]

    def losses_by_one_frame(self) -> str:
        """A table of what the reader loses by, given a single frame of a held-out video."""
        learner, rng = self.learner(0), np.random.default_rng(VIDEO_SEED)
        learner.model.eval()
        learner.bank = self.test_bank
        held = examples(self.test_bank, rng, num_frames=64, needles=8, split="test")
        batch = [e for e in islice(held, 5 * self.videos) if len(e.shows) == 1]
        positions: dict[str, list[int]] = {"asked about": [], "another needle": [], "none": []}
        for example in batch:
            shows = self.test_bank.shown[torch.from_numpy(example.frames), 0].numpy() >= 0
            asked = np.isin(np.arange(len(shows)), example.shows[0])
            for kind, of in zip(positions, (asked, shows & ~asked, ~shows), strict=True):
                positions[kind].append(int(rng.choice(np.flatnonzero(of))))
        read = learner.likelihood(batch, torch.tensor(list(positions.values())).T[..., None])
        return table(
            ["the frame shows", "mean loss, nats", "mean likelihood"],
            (
                [kind, f"{-float(of.mean()):.2f}", f"{float(of.exp().mean()):.2f}"]
                for kind, of in zip(positions, read.T, strict=True)
            ),
        )

    @torch.no_grad()
    def measured(self, learner: AnswerLearner) -> dict[str, dict[str, float]]:
        """Accuracy, recall and different frames of a choice on held-out videos, those of
        needle_study.py; an answer is right if each of its words is the likeliest."""
        learner.model.eval()
        learner.bank = self.test_bank
        rng, found = np.random.default_rng(VIDEO_SEED), {}
        for length in MEASURED:
            right, recall, different = [], [], []
            for number in range(self.videos):
                haystack = make_haystack([VIDEO_SEED, length, number], num_frames=length, needles=8)
                frames = self.test_bank.frames_of(haystack, rng)
                batch = [Example.about(haystack, frames, q) for q in haystack.questions]
                chosen = learner.choices(batch).argmax(dim=2)
                right += learner.right(batch, chosen).tolist()
                for example, of in zip(batch, map(set, chosen.tolist()), strict=True):
                    recall.append(fmean(bool(of & set(at)) for at in example.shows))
                    different.append(len(of))
            found[str(length)] = {
                "accuracy": fmean(right),
                "recall": fmean(recall),
                "different": fmean(different),
            }
        return found


def lines(trials: Trials, seeds: int) -> Iterator[list[str]]:
    """A row of the table for each way."""
    for name, way in WAYS.items():
        found = [trials.result(name, seed) for seed in range(seeds)]
        yield [
            way.told,
            f"{fmean(one['seconds'] for one in found):.0f}",
            *(
                over_seeds([one["lengths"][str(length)][figure] for one in found])
                for figure in ("recall", "accuracy")
                for length in MEASURED
            ),
            f"{fmean(one['lengths'][str(MEASURED[0])]['different'] for one in found):.1f}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("answers"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--videos", type=int, default=60, help="that each row is measured on")
    parser.add_argument("--seeds", type=int, default=3, help="of the selector")
    parser.add_argument("--quick", action="store_true", help="a look at whether all of it runs")
    options = parser.parse_args()
    scale = 0.01 if options.quick else 1.0
    trials = Trials(options.work, Steps().scaled(scale), options.videos, scale)
    about = (
        f"# Learning from answers\n\nMade by `python examples/{Path(__file__).name}`: "
        f"{options.videos} videos of each length, 8 needles, four frames and 16 visual tokens a "
        "question. Tower and reading stage are the same for all; selectors have "
        f"{options.seeds} seeds. After ±: standard deviation over seeds."
    )
    why = (
        "What the answer to a question about one needle loses by, and how likely it is, if the "
        f"reader sees a single frame of 64:\n\n{trials.losses_by_one_frame()}"
    )
    head = [
        "learns from",
        "CPU s",
        *(f"{what}, {n}" for what in ("recall", "accuracy") for n in MEASURED),
    ]
    rows: list[list[str]] = []
    for row in lines(trials, options.seeds):
        rows.append(row)
        # After each, so that a run that is stopped has something to show.
        told = table([*head, "different frames of 4"], rows)
        options.out.write_text(f"{about}\n\n{told}\n\n{why}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
