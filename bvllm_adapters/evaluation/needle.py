"""The needle task: questions about handwritten digits that flash up in a video of photographs.

A haystack is a slow pan over photographs; needles, coloured digits of which each shows for one or
two seconds, lie in it. A question is about one to three of them, and only the frames that show
them answer it. With more needles than the selector may choose frames (8 needles, L* = 4), finding
needles is not enough: the question has to be read.

Everything follows from a seed. Digits and photographs of the "test" split are never in "train".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bvllm_adapters.checks import check_count

DATA = Path(__file__).parents[1] / "data" / "needle"
DEMO_VIDEO = DATA.parent / "needles.mp4"
TRAIN_DIGITS = 1400  # of 1797; the rest, by other hands, are for testing
COLORS = {
    "red": (235, 20, 20),
    "yellow": (250, 230, 20),
    "green": (20, 200, 40),
    "cyan": (20, 220, 235),
    "blue": (40, 60, 245),
    "pink": (250, 70, 220),
    "white": (255, 255, 255),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")
KINDS = ("what", "where", "color", "first", "count")
TRAIN_ZOOMS = (0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.75, 1.0)  # few, to be kept
MOST_NEEDLES = 10  # as all digits of a haystack differ
MOST_ALIKE = 3  # needles of one colour that a "count" question is about

Split = Literal["train", "test"]
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Needle:
    """A digit of a colour at a place, from second `start` on for `length` seconds.

    `x`, `y`: its centre, `size`: its side, in parts of the frame's side. `glyph`: which of the
    handwritten digits it is.
    """

    digit: int
    color: str
    place: str
    start: int
    length: int
    glyph: int
    x: float
    y: float
    size: float

    @property
    def seconds(self) -> range:
        """The whole seconds at which it shows."""
        return range(self.start, self.start + self.length)


@dataclass(frozen=True)
class Scene:
    """A pan over a photograph, shown from second `start` to `end`.

    A square window of side `zoom` (in parts of the photograph's shorter side) moves from `first`
    to `last`, which are (row, column) in parts of the room there is. `turns`: quarter turns of
    the photograph. `tint`: 3 x 4, what is added of its red, green and blue, and of 255, to each.
    """

    photo: str
    start: float
    end: float
    zoom: float
    first: tuple[float, float]
    last: tuple[float, float]
    mirrored: bool
    turns: int
    tint: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Question:
    """A question, its answer, and which needles have to be seen for it."""

    kind: str
    text: str
    answer: str
    needles: tuple[int, ...]


@dataclass(frozen=True)
class Haystack:
    """A video of `num_frames` seconds with needles in it, and what can be asked about it."""

    num_frames: int
    scenes: tuple[Scene, ...]
    needles: tuple[Needle, ...]
    questions: tuple[Question, ...]

    def render(self, seconds: Sequence[float], size: int = 128) -> Iterator[Frames]:
        """(size, size, 3) RGB frames on screen at these times."""
        for second in seconds:
            frame = _background(self._scene(second), second, size).astype(np.float32)
            for needle in self.needles:
                if needle.start <= second < needle.start + needle.length:
                    _draw(frame, needle)
            yield np.clip(frame, 0, 255).astype(np.uint8)

    def write(self, file: str | Path, *, size: int = 128, fps: int = 1) -> None:
        """An H.264 mp4 of num_frames * fps frames; second k of it shows needles of second k."""
        import av

        check_count("size", size, least=16)
        check_count("fps", fps)
        with av.open(str(file), "w") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width = stream.height = size + size % 2
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
            times = [k / fps for k in range(self.num_frames * fps)]
            for frame in self.render(times, size + size % 2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    def _scene(self, second: float) -> Scene:
        return next(scene for scene in reversed(self.scenes) if scene.start <= second)


def make_haystack(
    seed: int | Sequence[int], *, num_frames: int = 64, needles: int = 3, split: Split = "test"
) -> Haystack:
    """A haystack with questions of every kind that it can be asked without ambiguity.

    Its digits all differ; up to three of them share a colour.

    Args:
        seed: an int, or several ints that together are the seed.
        num_frames: its length in seconds; room for 2 seconds a needle.
        needles: from 2 to 10. split: whose photographs and digits.

    Raises:
        ValueError: naming the argument.
    """
    check_count("needles", needles, least=2, most=MOST_NEEDLES)
    check_count("num_frames", num_frames, least=2 * needles)
    rng = np.random.default_rng(seed)
    digits = rng.permutation(10)[:needles]
    hidden = tuple(
        draw_needle(rng, digit=int(digit), color=color, start=start, length=length, split=split)
        for digit, color, (start, length) in zip(
            digits, _colors(rng, needles), _times(rng, num_frames, needles), strict=True
        )
    )
    return Haystack(
        num_frames, draw_scenes(rng, num_frames, split), hidden, _questions(rng, hidden)
    )


def demo_haystack() -> Haystack:
    """That of DEMO_VIDEO: 8 needles in a minute of held-out photographs."""
    return make_haystack(1268, num_frames=64, needles=8)


def draw_needle(
    rng: np.random.Generator, *, digit: int, color: str, start: int, length: int, split: Split
) -> Needle:
    """A needle of this digit and colour, drawn by a hand of the split, somewhere in the frame."""
    place = PLACES[rng.integers(4)]
    of_digit = np.flatnonzero(_labels() == digit)
    hands = of_digit[(of_digit < TRAIN_DIGITS) == (split == "train")]
    x = 0.27 + 0.46 * ("right" in place) + rng.uniform(-0.06, 0.06)
    y = 0.27 + 0.46 * ("bottom" in place) + rng.uniform(-0.06, 0.06)
    glyph = int(rng.choice(hands))
    size = float(rng.uniform(0.34, 0.46))
    return Needle(digit, color, place, start, length, glyph, float(x), float(y), size)


def draw_scenes(rng: np.random.Generator, num_frames: int, split: Split) -> tuple[Scene, ...]:
    """One to three pans that fill the video, over photographs of the split.

    Photographs to train on are few, so they also come turned and in other colours.
    """
    train = split == "train"
    cuts = sorted({0, num_frames, *(int(rng.integers(num_frames)) for _ in range(rng.integers(3)))})
    names = sorted(file.stem for file in (DATA / split).glob("*.jpg"))

    def corner() -> tuple[float, float]:
        return float(rng.uniform()), float(rng.uniform())

    scenes = []
    for start, end in pairwise(cuts):
        scenes.append(
            Scene(
                photo=f"{split}/{rng.choice(names)}",
                start=start,
                end=end,
                zoom=float(rng.choice(TRAIN_ZOOMS) if train else rng.uniform(0.25, 1.0)),
                first=corner(),
                last=corner(),
                mirrored=bool(rng.integers(2)),
                turns=int(rng.integers(4)) if train else 0,
                tint=tuple(map(tuple, _tint(rng, strong=train).tolist())),
            )
        )
    return tuple(scenes)


def _tint(rng: np.random.Generator, *, strong: bool) -> NDArray[np.float64]:
    """(3, 4): a little lighter or darker and warmer or colder; strong: any colours at all."""
    gain = 1 + rng.uniform(-0.25, 0.25) + rng.uniform(-0.1, 0.1, 3)
    tint = np.diag(gain)
    offset = np.zeros(3)
    if strong:
        saturation, contrast = rng.uniform(0, 2.5), rng.uniform(0.4, 1.4)
        grey = np.full((3, 3), 1 / 3)
        colors = rng.permutation(np.eye(3))
        tint = contrast * tint @ (saturation * colors + (1 - saturation) * grey)
        offset = rng.uniform(-0.2, 0.2) + (1 - contrast) / 2 + rng.uniform(-0.1, 0.1, 3)
    return np.concatenate([tint, offset[:, None]], axis=1)


def _colors(rng: np.random.Generator, needles: int) -> list[str]:
    """One colour holds one to three needles; as few as can be share the others."""
    names = list(rng.permutation(list(COLORS)))
    alike = min(int(rng.integers(1, MOST_ALIKE + 1)), needles)
    others = names[1:] * 2
    colors = [names[0]] * alike + others[: needles - alike]
    return [str(color) for color in rng.permutation(colors)]


def _times(rng: np.random.Generator, num_frames: int, needles: int) -> list[tuple[int, int]]:
    """(start, length) of each needle, in order; no two at once."""
    lengths = rng.integers(1, 3, needles)
    gaps = np.sort(rng.integers(0, num_frames - lengths.sum() + 1, needles))
    starts = gaps + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return [(int(start), int(length)) for start, length in zip(starts, lengths, strict=True)]


def _questions(rng: np.random.Generator, needles: Sequence[Needle]) -> tuple[Question, ...]:
    """At most one of each kind, about needles drawn at random."""
    held = Counter(needle.color for needle in needles)
    unique = [i for i, needle in enumerate(needles) if held[needle.color] == 1]
    questions = []
    if unique:
        i = int(rng.choice(unique))
        color, digit = needles[i].color, needles[i].digit
        questions.append(Question("what", f"What digit is {color}?", str(digit), (i,)))
    i = int(rng.choice(unique)) if unique and rng.integers(2) else int(rng.integers(len(needles)))
    by = f"{needles[i].color} digit" if i in unique and rng.integers(2) else str(needles[i].digit)
    questions.append(Question("where", f"Where is the {by}?", needles[i].place, (i,)))
    i = int(rng.integers(len(needles)))
    text = f"What color is the {needles[i].digit}?"
    questions.append(Question("color", text, needles[i].color, (i,)))
    by_color = len(unique) >= 2 and bool(rng.integers(2))
    pair = rng.permutation(unique if by_color else len(needles))[:2].tolist()
    a, b = (needles[i].color if by_color else str(needles[i].digit) for i in pair)
    first = a if needles[pair[0]].start < needles[pair[1]].start else b
    text = f"Which came first, {a} or {b}?"
    questions.append(Question("first", text, first, tuple(sorted(pair))))
    fit = [color for color in sorted(held) if held[color] <= MOST_ALIKE]
    count = int(rng.choice(sorted({held[color] for color in fit})))
    color = str(rng.choice([color for color in fit if held[color] == count]))
    asked = tuple(i for i, needle in enumerate(needles) if needle.color == color)
    questions.append(Question("count", f"How many digits are {color}?", str(count), asked))
    return tuple(questions)


def _background(scene: Scene, second: float, size: int) -> NDArray[np.float32]:
    photo = _turned(scene, size)
    done = (second - scene.start) / max(scene.end - scene.start, 1)
    top, left = (
        round((a + (b - a) * done) * (side - size))
        for a, b, side in zip(scene.first, scene.last, photo.shape[:2], strict=True)
    )
    window = photo[top : top + size, left : left + size]
    tint = np.array(scene.tint, np.float32)
    tinted: NDArray[np.float32] = window @ tint[:, :3].T + 255 * tint[:, 3]
    return tinted.clip(0, 255)


def _turned(scene: Scene, size: int) -> Frames:
    photo = np.rot90(_resized(scene.photo, round(size / scene.zoom)), scene.turns)
    return photo[:, ::-1] if scene.mirrored else photo


@cache
def _image(photo: str) -> Image.Image:
    with Image.open(DATA / f"{photo}.jpg") as image:
        return image.convert("RGB")


@lru_cache(maxsize=128)
def _resized(photo: str, short_side: int) -> Frames:
    image = _image(photo)
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


@cache
def _digits() -> tuple[Frames, Frames]:
    with np.load(DATA / "digits.npz") as arrays:
        return arrays["images"], arrays["labels"]


def _labels() -> Frames:
    return _digits()[1]


def _draw(frame: NDArray[np.float32], needle: Needle) -> None:
    """Paint a needle, with a dark halo that sets it off from any background."""
    side = round(needle.size * len(frame))
    glyph = Image.fromarray((_digits()[0][needle.glyph] * 15.9).astype(np.uint8))
    inner = round(side * 0.8)
    ink = np.zeros((side, side), np.float32)
    edge = (side - inner) // 2
    ink[edge : edge + inner, edge : edge + inner] = (
        np.asarray(glyph.resize((inner, inner), Image.Resampling.BICUBIC), np.float32) / 255
    )
    ink = np.clip(1.6 * ink - 0.2, 0, 1)
    small = Image.fromarray((ink * 255).astype(np.uint8)).resize((9, 9), Image.Resampling.BOX)
    halo = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    halo = np.clip(2.5 * halo, 0, 0.75)
    top, left = (
        min(max(round(middle * len(frame) - side / 2), 0), len(frame) - side)
        for middle in (needle.y, needle.x)
    )
    part = frame[top : top + side, left : left + side]
    part *= (1 - halo)[..., None]
    part += ink[..., None] * (np.array(COLORS[needle.color], np.float32) - part)
