"""VNBench's three tasks in moving footage, with natural pictures as needles.

    python examples/natural_media.py media
    python examples/needles_in_footage.py media --out haystacks --lengths 30 120 600
    python examples/train_footage.py media --out footage-model
    bvllm evaluate haystacks/questions.jsonl --model footage-model --by likelihood --group kind

A haystack is cut from camera footage and pans over photographs. Needles lie in it, each for one or
two seconds: a photograph of a thing on a coloured card, which fills the frame ("insert") or is
pasted into the footage ("edit"), as in VNBench (Zhao et al., arXiv 2406.09367). Three kinds of
question have four options each:

    retrieval   What is on the red card?
    ordering    In which order are a bird, a coin and a fish shown?
    counting    How many cards show a bird?

Only frames that show the needles asked about answer it. Everything follows from a seed; pictures,
footage and photographs of the "test" split are never in "train".
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from natural_media import Media, clip
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bvllm_adapters.evaluation.needle import COLORS, Frames, Haystack, Scene, Split, draw_scenes

SIZE = 128  # of a frame, in pixels
NEEDLES = 8
MOST_ALIKE = 4  # cards with things of one category
STYLES = ("insert", "edit")
SHOT = (5, 40)  # seconds from one cut to the next
KINDS = ("retrieval", "ordering", "counting")
FPS = 5.0  # of footage that is kept


@dataclass(frozen=True)
class Card:
    """A picture on a coloured card, from second `start` on for `length` seconds.

    `place`: left, top and side of the card in parts of the frame. `turn`: of the picture, degrees.
    """

    category: str
    color: str
    style: str
    start: int
    length: int
    picture: Path
    place: tuple[float, float, float]
    mirrored: bool
    turn: float

    @property
    def seconds(self) -> range:
        """The whole seconds at which it shows."""
        return range(self.start, self.start + self.length)


@dataclass(frozen=True)
class Shot:
    """Some footage from second `start` to `end`, forwards and backwards if it is too short.

    `first`: the frame that it begins with. `speed`: of it. `corner`: of the window that is seen, in
    parts of the room there is. `gain`: of red, green and blue.
    """

    file: Path
    start: float
    end: float
    first: int
    speed: float
    corner: tuple[float, float]
    mirrored: bool
    gain: tuple[float, ...]

    def frame(self, second: float, size: int) -> NDArray[np.float32]:
        frames = clip(self.file, size, FPS)
        turn = 2 * len(frames) - 2
        at = (self.first + round((second - self.start) * self.speed * FPS)) % turn
        shown = frames[min(at, turn - at)]
        top, left = (
            round(part * (side - size))
            for part, side in zip(self.corner, shown.shape[:2], strict=True)
        )
        window = shown[top : top + size, left : left + size]
        window = window[:, ::-1] if self.mirrored else window
        return (window * np.array(self.gain, np.float32)).clip(0, 255)


@dataclass(frozen=True)
class Asked:
    """A question with options; `needles`: which of the cards have to be seen for it."""

    kind: str
    text: str
    options: tuple[str, ...]
    answer: str
    needles: tuple[int, ...]


@dataclass(frozen=True)
class FootageHaystack(Haystack):
    """Cards in footage; see `Haystack`, whose file it is written to."""

    def render(self, seconds: Sequence[float], size: int = SIZE) -> Iterator[Frames]:
        for second in seconds:
            scene: Any = next(s for s in reversed(self.scenes) if s.start <= second)
            if isinstance(scene, Shot):
                frame = scene.frame(second, size)
            else:
                (frame,) = Haystack(self.num_frames, (scene,), (), ()).render([second], size)
            for card in self.needles:
                if card.start <= second < card.start + card.length:
                    frame = _with_card(frame, card)
            yield np.asarray(frame).astype(np.uint8)


def make_haystack(
    seed: int | Sequence[int], media: Media, *, num_frames: int, style: str, split: Split = "test"
) -> FootageHaystack:
    """Eight cards in `num_frames` seconds of footage, and a question of each kind.

    Args:
        style: of the cards, "insert" or "edit". split: whose pictures and footage.
    """
    rng = np.random.default_rng(seed)
    alike = int(rng.integers(1, MOST_ALIKE + 1))
    names = rng.permutation(media.categories).tolist()
    categories = rng.permutation(names[:1] * alike + names[1 : NEEDLES - alike + 1]).tolist()
    once = rng.permutation(list(COLORS)).tolist()
    colors = rng.permutation(once[:5] + rng.choice(once[5:], NEEDLES - 5).tolist()).tolist()
    lengths = rng.integers(1, 3, NEEDLES)
    gaps = np.sort(rng.integers(0, num_frames - lengths.sum() + 1, NEEDLES))
    starts = gaps + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    cards = tuple(
        draw_card(
            rng, media, category=category, color=color, style=style, start=int(start),
            length=int(length), split=split,
        )
        for category, color, start, length in zip(categories, colors, starts, lengths, strict=True)
    )  # fmt: skip
    scenes = draw_footage(rng, media, num_frames, split)
    return FootageHaystack(num_frames, scenes, cards, ask(rng, cards, media.categories))


def draw_card(
    rng: np.random.Generator, media: Media, *, category: str, color: str, style: str, start: int,
    length: int, split: Split,
) -> Card:  # fmt: skip
    """With a picture of the category; any that the split has, anywhere in the frame."""
    pictures = media.pictures(category, split)
    side = 1.0 if style == "insert" else float(rng.uniform(0.55, 0.75))
    left, top = ((1 - side) * rng.uniform(size=2)).tolist()
    turn = float(rng.uniform(-25, 25) if split == "train" else 0.0)
    return Card(
        category, color, style, start, length, pictures[rng.integers(len(pictures))],
        (left, top, side), bool(rng.integers(2)), turn,
    )  # fmt: skip


def draw_footage(
    rng: np.random.Generator, media: Media, num_frames: int, split: Split
) -> tuple[Shot | Scene, ...]:
    """Shots that fill the video: two of three camera footage, the others pans over photographs."""
    files = media.footage(split)
    scenes: list[Shot | Scene] = []
    start = 0
    while start < num_frames:
        end = min(start + int(rng.integers(SHOT[0], SHOT[1] + 1)), num_frames)
        if rng.random() < 1 / 3:
            pan = draw_scenes(rng, end - start, split)[0]
            scenes.append(replace(pan, start=start, end=end))
        else:
            file = files[rng.integers(len(files))]
            corner = rng.uniform(size=2).tolist()
            gain = rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, 3)
            scenes.append(
                Shot(
                    file, start, end, int(rng.integers(1000)), float(rng.uniform(0.2, 1.0)),
                    (corner[0], corner[1]), bool(rng.integers(2)), tuple(gain.tolist()),
                )
            )  # fmt: skip
        start = end
    return tuple(scenes)


def ask(
    rng: np.random.Generator, cards: Sequence[Card], categories: Sequence[str]
) -> tuple[Asked, ...]:
    """A question of each kind, about cards drawn at random."""
    colors = Counter(card.color for card in cards)
    shown = Counter(card.category for card in cards)
    i = int(rng.choice([i for i, card in enumerate(cards) if colors[card.color] == 1]))
    here = [name for name in shown if name != cards[i].category]
    others = [name for name in categories if name not in (*here, cards[i].category)]
    wrong = rng.permutation(here)[:2].tolist() + rng.permutation(others + here[2:])[:1].tolist()
    if len({*wrong}) < 3:  # too few others
        wrong = rng.permutation([name for name in categories if name != cards[i].category])[:3]
    found = [
        _asked(rng, "retrieval", f"What is on the {cards[i].color} card?", cards[i].category,
               [str(name) for name in wrong], (i,))
    ]  # fmt: skip
    once = [i for i, card in enumerate(cards) if shown[card.category] == 1]
    three = sorted(rng.permutation(once)[:3].tolist())
    right = tuple(cards[i].category for i in three)
    a, b, c = (_one(name) for name in sorted(right))
    turned = [", ".join(order) for order in permutations(right) if order != right]
    found.append(
        _asked(rng, "ordering", f"In which order are {a}, {b} and {c} shown?", ", ".join(right),
               rng.permutation(turned)[:3].tolist(), tuple(three))
    )  # fmt: skip
    most = shown.most_common(1)[0][1]
    name = str(rng.choice(sorted(name for name in shown if shown[name] == most)))
    counts = [str(n) for n in range(1, MOST_ALIKE + 1) if n != most]
    asked = tuple(i for i, card in enumerate(cards) if card.category == name)
    text = f"How many cards show {_one(name)}?"
    return (*found, _asked(rng, "counting", text, str(most), counts, asked))


def _asked(
    rng: np.random.Generator, kind: str, text: str, answer: str, wrong: Sequence[str],
    needles: tuple[int, ...],
) -> Asked:  # fmt: skip
    options = tuple(map(str, rng.permutation([answer, *wrong])))
    return Asked(kind, text, options, answer, needles)


def _one(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _with_card(frame: NDArray[Any], card: Card) -> NDArray[Any]:
    image = Image.fromarray(np.asarray(frame).astype(np.uint8))
    left, top, side = (round(part * len(frame)) for part in card.place)
    ImageDraw.Draw(image).rectangle((left, top, left + side, top + side), COLORS[card.color])
    picture = _picture(card.picture, card.mirrored, card.turn, round(0.84 * side))
    corner = (left + (side - picture.width) // 2, top + (side - picture.height) // 2)
    image.paste(picture, corner, picture)
    return np.asarray(image)


@cache
def _image(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGBA")


def _picture(file: Path, mirrored: bool, turn: float, side: int) -> Image.Image:
    picture = _image(file)
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if turn:
        picture = picture.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    scale = side / max(picture.size)
    size = tuple(max(1, round(scale * pixels)) for pixels in picture.size)
    return picture.resize(size, Image.Resampling.BILINEAR)


def rows_of(haystack: FootageHaystack, name: str, **columns: Any) -> Iterator[dict[str, Any]]:
    """Its questions as `bvllm evaluate` reads them; `needles`: first and last second of each."""
    for question in haystack.questions:
        shown = [haystack.needles[i].seconds for i in question.needles]
        yield {
            "id": f"{Path(name).stem}-{question.kind}",
            "video": name,
            "question": question.text,
            "options": list(question.options),
            "answer": question.answer,
            "kind": question.kind,
            "length": haystack.num_frames,
            "needles": [[seconds[0], seconds[-1]] for seconds in shown],
            **columns,
        }


def write_haystacks(
    folder: Path, media: Media, videos: Mapping[int, int], *, seed: int = 0, split: Split = "test"
) -> Path:
    """So many `videos` of each length, half of each style; returns the table of questions."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rows = []
    for length, count in videos.items():
        for number in range(count):
            style = STYLES[number % len(STYLES)]
            haystack = make_haystack(
                [seed, length, number], media, num_frames=length, style=style, split=split
            )
            name = f"videos/{length}-{number:03d}-{style}.mp4"
            if not (folder / name).exists():
                haystack.write(folder / ".part.mp4", size=SIZE)
                (folder / ".part.mp4").rename(folder / name)
            rows += rows_of(haystack, name, style=style)
        print(f"{count} videos of {length} s", flush=True)
    table = folder / "questions.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def add_lengths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lengths", type=int, nargs="+", default=[30, 120, 600], help="seconds")
    parser.add_argument(
        "--videos", type=int, nargs="+", default=[20], help="of all lengths, or of each"
    )


def videos_of(options: argparse.Namespace) -> dict[int, int]:
    """How many of each length.

    Raises:
        ValueError: neither one number nor one for each length.
    """
    counts = options.videos * (len(options.lengths) if len(options.videos) == 1 else 1)
    if len(counts) != len(options.lengths):
        raise ValueError(
            f"videos: got {len(counts)} numbers, wanted one, or {len(options.lengths)} as lengths"
        )
    return dict(zip(options.lengths, counts, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("media", help="folder that natural_media.py filled")
    parser.add_argument("--out", type=Path, default=Path("haystacks"))
    add_lengths(parser)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = write_haystacks(
        options.out, Media(options.media), videos_of(options), seed=options.seed
    )
    print(f"{table}: {len(table.read_text().splitlines())} questions")


if __name__ == "__main__":
    main()
