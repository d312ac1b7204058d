"""A task where reading decides: four photographs on a card, and a question about one of them.

    python examples/natural_media.py media
    python examples/shelves_in_footage.py media --work shelves

"What is at the top left of the red card?" The four options are the four things on that card, so
to find the card is to guess. Everything else is as in needles_in_footage.py. Two frames are chosen,
with 1, 4 or 16 tokens each; each count has a sampler and a selector of its own, trained by
train_footage.py's first two stages. "given": about a picture of the card alone, so that only
reading counts; "found": about a minute of footage, in which it is chosen. Finished stages are kept
in --work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from baselines import accuracy, recall
from found import write_table
from natural_media import CATEGORIES, Media
from needle_bank import CLIP_FRAMES, COLOR_NAMES, NEEDLE_EVERY, Bank, Example
from needle_lessons import FrameLabels, Learner
from needles_in_footage import Asked, Card, FootageHaystack, draw_card, draw_footage, rows_of
from PIL import Image
from small_model import WIDTH
from torch import Tensor
from train_demo import learn_to_read, once, optimize, parameters_of, readers_of
from train_footage import WORDS, build, seen_of

from bvllm_adapters.evaluation import evaluate_file
from bvllm_adapters.evaluation.needle import COLORS, Question, Split

SIZE = 192  # of a frame, in pixels: six patches wide, three of which are a photograph's
PLACES = {
    "top left": (0.0, 0.0),
    "top right": (0.5, 0.0),
    "bottom left": (0.0, 0.5),
    "bottom right": (0.5, 0.5),
}
SHELVES = 6  # of a video
FRAMES, TOKENS = 2, (1, 4, 16)  # that are chosen, and of each
LENGTH = 60  # seconds of the videos that are asked about
SHELF_WORDS = list(dict.fromkeys([*WORDS, "at", "of", "top", "bottom", "left", "right"]))


def draw_shelf(
    rng: np.random.Generator, media: Media, *, color: str, start: int, length: int, split: Split
) -> list[Card]:
    """A card of one colour that fills the frame, as four: a photograph of another thing in each."""
    things = rng.permutation(media.categories)[: len(PLACES)]
    cards = []
    for name, (left, top) in zip(things, PLACES.values(), strict=True):
        card = draw_card(
            rng, media, category=str(name), color=color, style="insert", start=start,
            length=length, split=split,
        )  # fmt: skip
        cards.append(Card(**(vars(card) | {"place": (left, top, 0.5)})))
    return cards


def make_shelves(seed: Sequence[int], media: Media) -> FootageHaystack:
    """A minute of footage of the "test" split with six shelves, and a question about three."""
    rng = np.random.default_rng(seed)
    colors = rng.permutation(list(COLORS))[:SHELVES].tolist()
    lengths = rng.integers(1, 3, SHELVES)
    gaps = np.sort(rng.integers(0, LENGTH - lengths.sum() + 1, SHELVES))
    starts = gaps + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    shelves = [
        draw_shelf(rng, media, color=color, start=int(start), length=int(length), split="test")
        for color, start, length in zip(colors, starts, lengths, strict=True)
    ]
    cards = tuple(card for shelf in shelves for card in shelf)
    asked = []
    for number in rng.permutation(SHELVES)[:3]:
        place = int(rng.integers(len(PLACES)))
        options = tuple(map(str, rng.permutation([card.category for card in shelves[number]])))
        answer, text = shelves[number][place].category, question_of(colors[number], place)
        asked.append(Asked("reading", text, options, answer, (int(number) * len(PLACES) + place,)))
    return FootageHaystack(LENGTH, draw_footage(rng, media, LENGTH, "test"), cards, tuple(asked))


def question_of(color: str, place: int) -> str:
    return f"What is at the {list(PLACES)[place]} of the {color} card?"


class ShelfBank(Bank):
    """What the tower saw of clips full of shelves; see `needle_bank.Bank`.

    Args:
        shown: (F, 5) the four things and the colour of the shelf that shows; -1: none.
    """

    @property
    def shelves(self) -> np.ndarray:
        """(n,) the first of two frames that show one."""
        return np.arange(0, len(self.shown), NEEDLE_EVERY)


class ShelfLearner(Learner):
    """Questions about shelves in footage, put together of the bank's frames."""

    def examples(
        self, count: int, num_frames: int | None = None, of: Sequence[int] = (SHELVES,)
    ) -> list[Example]:
        return [self._example(num_frames or 20) for _ in range(count)]

    def _example(self, num_frames: int) -> Example:
        bank: Any = self.bank
        frames = np.concatenate(
            [self.rng.choice(bank.empty[self.rng.integers(len(bank.empty))], 10)
             for _ in range(-(-num_frames // 10))]
        )[:num_frames]  # fmt: skip
        by_color: dict[int, int] = {}
        while len(by_color) < SHELVES:
            shelf = int(self.rng.choice(bank.shelves))
            by_color.setdefault(int(bank.shown[shelf, 4]), shelf)
        places = np.sort(self.rng.choice(num_frames // 2, SHELVES, replace=False)) * 2
        shows = []
        for place, shelf in zip(places.tolist(), by_color.values(), strict=True):
            length = int(self.rng.integers(1, 3))
            frames[place : place + length] = [shelf, shelf + 1][:length]
            shows.append([*range(place, place + length)])
        asked, place = int(self.rng.integers(SHELVES)), int(self.rng.integers(len(PLACES)))
        *things, color = bank.shown[list(by_color.values())[asked]].tolist()
        text = question_of(COLOR_NAMES[color], place)
        answer = list(CATEGORIES)[things[place]]
        return Example(frames, Question("reading", text, answer, (asked,)), [shows[asked]])


def clips_of(media: Media, count: int) -> list[tuple[FootageHaystack, Tensor]]:
    """Clips that show a shelf in two frames of three."""
    clips = []
    for number in range(count):
        rng = np.random.default_rng([1, number])
        cards, about = [], torch.full((CLIP_FRAMES, 5), -1)
        for start in range(0, CLIP_FRAMES, NEEDLE_EVERY):
            color = int(rng.integers(len(COLOR_NAMES)))
            shelf = draw_shelf(
                rng, media, color=COLOR_NAMES[color], start=start, length=2, split="train"
            )
            things = [list(CATEGORIES).index(card.category) for card in shelf]
            about[start : start + 2] = torch.tensor([*things, color])
            cards += shelf
        scenes = draw_footage(rng, media, CLIP_FRAMES, "train")
        clips.append((FootageHaystack(CLIP_FRAMES, scenes, tuple(cards), ()), about))
    return clips


def train(media: Media, tokens: int, *, work: Path, scale: float) -> tuple[Any, Any]:
    """A model with so many tokens of a frame: what reads, then what chooses."""
    model, processor = build(
        media, 0, size=SIZE, words=SHELF_WORDS, num_frames=FRAMES, tokens_per_frame=tokens
    )
    tokenizer = model.balanced_tokenizer

    @cache
    def learner() -> ShelfLearner:
        bank = work / "bank.safetensors"
        if not bank.exists():
            clips = clips_of(media, max(2, round(60 * scale)))
            ShelfBank(*seen_of(model, processor, clips, SIZE)).save(bank)
        return ShelfLearner(model, processor, ShelfBank.load(bank), 0)

    def reading() -> None:
        kinds = [len(CATEGORIES)] * len(PLACES) + [len(COLORS)]
        learn_to_read(learner(), FrameLabels(WIDTH, kinds), max(2, round(600 * scale)))

    def selection() -> None:
        parameters = parameters_of(tokenizer.frame_selector)
        steps = max(2, round(300 * scale))
        optimize("selection", learner().cover(), parameters, steps=steps, lr=2e-3)

    model.train()
    once(work / f"reading_{tokens}.safetensors", readers_of(model), reading)
    once(work / f"selection_{tokens}.safetensors", tokenizer.frame_selector, selection)
    return model.eval(), processor


def write_shelves(folder: Path, media: Media, videos: int) -> None:
    """Tables "found", of videos, and "given", of a picture of each card that is asked about."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    found, given = [], []
    for number in range(videos):
        haystack = make_shelves([7, number], media)
        name = f"videos/{number:03d}.mp4"
        if not (folder / name).exists():
            haystack.write(folder / ".part.mp4", size=SIZE)
            (folder / ".part.mp4").rename(folder / name)
        for k, row in enumerate(rows_of(haystack, name)):
            second = haystack.needles[haystack.questions[k].needles[0]].start
            (frame,) = haystack.render([second], SIZE)
            picture = f"videos/{number:03d}-{k}.png"
            Image.fromarray(frame).save(folder / picture)
            found.append(row | {"id": f"{number}-{k}"})
            given.append(row | {"id": f"{number}-{k}", "video": picture})
    for name, rows in (("found", found), ("given", given)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("media", help="folder that natural_media.py filled")
    parser.add_argument("--work", type=Path, default=Path("shelves"), help="what is done")
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--scale", type=float, default=1.0, help="of all stages' steps")
    options = parser.parse_args()
    media, task = Media(options.media), options.work / "task"
    write_shelves(task, media, options.videos)
    lines = []
    for tokens in TOKENS:
        began = time.process_time()
        model, processor = train(media, tokens, work=options.work, scale=options.scale)
        print(f"{tokens} tokens: {time.process_time() - began:.0f} s of CPU", flush=True)
        given, found = (
            evaluate_file(model, task / f"{name}.jsonl", processor=processor, by="likelihood").rows
            for name in ("given", "found")
        )
        most, seen = max(row["tokens"] for row in found), fmean(map(recall, found))
        lines.append([f"{tokens}", accuracy(given), accuracy(found), f"{seen:.2f}", f"{most}"])
    print(f"\n{options.videos} videos of {LENGTH} s, three questions each\n")
    write_table(["of a frame", "given", "found", "recall", "tokens, most"], lines)


if __name__ == "__main__":
    main()
