"""Frames of the needle task, seen once by a frozen tower, and put together to ever new videos.

The tower sees each frame alone and does not train, so a video need not be rendered, coded, decoded
and encoded anew each time that it is asked about: its frames are looked up in a bank.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bvllm_adapters import FrameFeatures, read_video
from bvllm_adapters.evaluation.needle import (
    COLORS,
    PLACES,
    Haystack,
    Question,
    Split,
    draw_needle,
    draw_scenes,
    make_haystack,
)

CLIP_FRAMES = 96
NEEDLE_EVERY = 3  # frames, of which a needle shows in two
COLOR_NAMES = tuple(COLORS)


class Bank:
    """What a tower saw of clips.

    Args:
        cls: (F, C), patches: (F, P, C), of the F frames of all clips; kept in half precision.
        shown: (F, 3) digit, colour and place of the needle that shows; -1: none.
    """

    def __init__(self, cls: Tensor, patches: Tensor, shown: Tensor) -> None:
        self.cls, self.patches, self.shown = cls.half(), patches.half(), shown
        number = np.arange(len(shown))
        # (V, E) frames of each clip without a needle.
        self.empty = number[shown[:, 0].numpy() < 0].reshape(-1, CLIP_FRAMES // NEEDLE_EVERY)
        of_kind = defaultdict(list)
        for frame in number[::NEEDLE_EVERY]:
            of_kind[tuple(shown[frame].tolist())].append((frame, frame + 1))
        # What is shown -> (n, 2) frames that show such a needle.
        self.needles = {key: np.array(frames) for key, frames in of_kind.items()}

    @classmethod
    @torch.no_grad()
    def fill(
        cls, pixels: Tensor, shown: Tensor, look: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> Bank:
        """Have a tower look at clips. Args: as `make_clips` gives them; `look`: the tower."""
        seen = [look(part) for part in pixels.split(256)]
        return cls(
            torch.cat([one for one, _ in seen]), torch.cat([all_ for _, all_ in seen]), shown
        )

    def save(self, file: Path) -> None:
        save_file({"cls": self.cls, "patches": self.patches, "shown": self.shown}, file)

    @classmethod
    def load(cls, file: Path) -> Bank:
        return cls(**load_file(file))

    def features(self, frames: np.ndarray) -> FrameFeatures:
        """(T,) frames of the bank -> what the tower saw of the video that they make up."""
        picked = torch.from_numpy(frames)
        return FrameFeatures(self.cls[picked].float(), self.patches[picked].float())

    @staticmethod
    def labels_of(needle: Any) -> tuple[int, ...]:
        """A needle as `shown` has it."""
        return needle.digit, COLOR_NAMES.index(needle.color), PLACES.index(needle.place)

    def scenes_of(self, haystack: Haystack, rng: np.random.Generator) -> np.ndarray:
        """(T,) frames of the bank without a needle; of one clip for each scene."""
        clips = rng.integers(len(self.empty), size=len(haystack.scenes))
        frames = np.empty(haystack.num_frames, np.int64)
        for scene, clip in zip(haystack.scenes, clips, strict=True):
            start, end = int(scene.start), int(scene.end)
            frames[start:end] = rng.choice(self.empty[clip], size=end - start)
        return frames

    def frames_of(self, haystack: Haystack, rng: np.random.Generator) -> np.ndarray:
        """(T,) frames of the bank that make up this video."""
        frames = self.scenes_of(haystack, rng)
        for needle in haystack.needles:
            alike = self.needles[self.labels_of(needle)]
            frames[needle.start : needle.start + needle.length] = alike[
                rng.integers(len(alike)), : needle.length
            ]
        return frames


@dataclass(frozen=True)
class Example:
    """A question about a video whose (T,) frames lie in the bank.

    `shows`: for each needle asked about, the positions in the video at which it shows.
    """

    frames: np.ndarray
    question: Question
    shows: list[list[int]]

    @classmethod
    def about(cls, haystack: Haystack, frames: np.ndarray, question: Question) -> Example:
        """One of a haystack's questions; `frames` are those that make it up."""
        return cls(frames, question, [list(haystack.needles[i].seconds) for i in question.needles])


def examples(
    bank: Bank, rng: np.random.Generator, *, num_frames: int, needles: int, split: Split
) -> Iterator[Example]:
    """Questions about new videos, without end."""
    while True:
        haystack = make_haystack(
            int(rng.integers(2**62)), num_frames=num_frames, needles=needles, split=split
        )
        frames = bank.frames_of(haystack, rng)
        for question in haystack.questions:
            yield Example.about(haystack, frames, question)


def make_clips(
    count: int, *, split: Split, seed: int, shrink: Callable[[np.ndarray], Tensor]
) -> tuple[Tensor, Tensor]:
    """Frames of clips full of needles, through mp4 files and the decoder, and what they show.

    Args:
        shrink: (T, H, W, 3) frames -> (T, 3, S, S) uint8 pixels.

    Returns:
        (count * CLIP_FRAMES, 3, S, S) uint8; (count * CLIP_FRAMES, 3) digit, index of the colour,
        index of the place, all -1 where no needle shows.
    """
    pixels, shown = [], []
    with tempfile.TemporaryDirectory() as folder:
        for clip in range(count):
            haystack = _full_of_needles(np.random.default_rng([seed, clip]), split)
            haystack.write(Path(folder) / "clip.mp4")
            pixels.append(shrink(read_video(Path(folder) / "clip.mp4").frames))
            about = torch.full((CLIP_FRAMES, 3), -1)
            for needle in haystack.needles:
                labels = torch.tensor(Bank.labels_of(needle))
                about[needle.start : needle.start + needle.length] = labels
            shown.append(about)
    return torch.cat(pixels), torch.cat(shown)


def _full_of_needles(rng: np.random.Generator, split: Split) -> Haystack:
    needles = tuple(
        draw_needle(
            rng,
            digit=int(rng.integers(10)),
            color=str(rng.choice(COLOR_NAMES)),
            start=start,
            length=2,
            split=split,
        )
        for start in range(0, CLIP_FRAMES, NEEDLE_EVERY)
    )
    return Haystack(CLIP_FRAMES, draw_scenes(rng, CLIP_FRAMES, split), needles, ())
