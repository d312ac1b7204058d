"""Rows as examples, decoded in DataLoader workers; what cannot be read is skipped by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from bvllm_adapters.question import IGNORED_LABEL
from bvllm_adapters.training.chat import expanded, tokenized
from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.conversations import Kind, Row, RowError
from bvllm_adapters.training.host import Example, HostTraining, Visual
from bvllm_adapters.video.frames import Video, VideoWarning
from bvllm_adapters.video.read import read_video

Draw = tuple[int, int]
"""Which row is drawn, and in which round over all rows: (round, row)."""


@dataclass(frozen=True)
class Skipped:
    """A row that could not be made an example of, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Samples(Dataset[Example | Skipped]):
    """Examples of rows, by draw: the noise of a row differs from round to round, and from nothing
    else.

    Args:
        fps, max_frames: of videos, see `read_video`. max_length: ids of a row, see `tokenized`.
        seed: of the noise.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        host: HostTraining,
        *,
        fps: float = 1.0,
        max_frames: int | None = None,
        max_length: int = 2048,
        seed: int = 0,
    ) -> None:
        self.rows = rows
        self.host = host
        self.fps = fps
        self.max_frames = max_frames
        self.max_length = max_length
        self.seed = seed

    @classmethod
    def of(cls, config: TrainingConfig, rows: Sequence[Row], host: HostTraining) -> Samples:
        """As a run's config says."""
        return cls(
            rows,
            host,
            fps=config.fps,
            max_frames=config.max_frames,
            max_length=config.max_length,
            seed=config.seed,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> Example | Skipped:
        row = self.rows[draw[1]]
        try:
            return self.example(row, draw)
        except Exception as error:  # whatever a decoder raises: one row must not end a run
            return Skipped(row.name, str(error) or repr(error))

    def example(self, row: Row, draw: Draw) -> Example:
        """Raises: RowError, VideoError, and what else decoders do."""
        most = self.host.max_media
        if most is not None and len(row.media) > most:
            raise RowError(f"got {len(row.media)} images and videos, wanted {most} at most")
        tokenized(row, self.host, self.max_length)  # before any video is read
        visuals = []
        for medium in row.media:
            if medium.path.exists() and not (medium.path.is_file() or medium.path.is_dir()):
                raise RowError(f"{medium.path}: got a device or a pipe, wanted a file or folder")
            with warnings.catch_warnings():
                # What there is of a damaged video is shown.
                warnings.simplefilter("ignore", VideoWarning)
                video = read_video(medium.path, fps=self.fps, max_frames=self.max_frames)
            if medium.kind == "image" and len(video.frames) != 1:
                raise RowError(f"{medium.path}: got {len(video.frames)} frames, wanted an image")
            visuals.append(self.visual(medium.kind, video))
        ids, labels, more = expanded(row, self.host, visuals, self.max_length)
        seeds = np.random.SeedSequence([self.seed, *draw]).generate_state(len(visuals), np.uint64)
        return Example(
            row.name, row.question, ids, labels, tuple(visuals), tuple(seeds.tolist()),
            more.of_ids, more.beside,
        )  # fmt: skip

    def visual(self, kind: Kind, video: Video) -> Visual:
        own: Any = getattr(self.host, "visual", None)
        if own is not None:
            found: Visual = own(kind, video)
            return found
        return Visual(kind, self.host.pixels(video), torch.from_numpy(video.seconds))


class InOrder(Dataset[Example | Skipped]):
    """Examples by row alone, as validation sees them: always the first round's."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Example | Skipped:
        return self.samples[0, row]


class ShuffledRows(Sampler[Draw]):
    """All rows in one order after another, until `count` are drawn; the same in every process.

    An order is shuffled by the seed and its round, so where a run stands is one number.
    """

    def __init__(self, rows: int, count: int, seed: int) -> None:
        self.rows = rows
        self.count = count
        self.seed = seed

    def __iter__(self) -> Iterator[Draw]:
        for begin in range(0, self.count, self.rows):
            turn = begin // self.rows
            order = np.random.default_rng([self.seed, turn]).permutation(self.rows)
            for row in order[: self.count - begin].tolist():
                yield turn, row

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Collate:
    """Examples -> forward()'s arguments, and for the trainer `questions`, `seeds`, `skipped`."""

    host: HostTraining

    def __call__(self, drawn: Sequence[Example | Skipped]) -> dict[str, Any]:
        examples = [one for one in drawn if isinstance(one, Example)]
        skipped = [one for one in drawn if isinstance(one, Skipped)]
        # A batch without any row still takes its step, as other devices wait for it.
        examples = examples or [self.blank()]
        padded = torch.nn.utils.rnn.pad_sequence
        ids = padded([e.input_ids for e in examples], True, float(self.host.pad_token_id))
        lengths = torch.tensor([len(example.input_ids) for example in examples])
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            "labels": padded([example.labels for example in examples], True, IGNORED_LABEL),
            **self.host.inputs(examples),
            "questions": [example.question for example in examples],
            "seeds": [seed for example in examples for seed in example.seeds],
            "skipped": [str(one) for one in skipped],
            "drawn": len(drawn),
        }

    def blank(self) -> Example:
        """Words without anything to learn."""
        ids = torch.tensor(self.host.ids(self.host.prompt(["Hello"])))
        return Example("", "", ids, torch.full_like(ids, IGNORED_LABEL))
