"""A model's answers to a table of questions about videos."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.bulk.by_video import rows_by_video
from bvllm_adapters.bulk.identity import model_identity
from bvllm_adapters.bulk.run import run_table
from bvllm_adapters.bulk.shards import Share
from bvllm_adapters.bulk.told import choice_told
from bvllm_adapters.bulk.video_row import VideoRow, check_question, read_by, read_rows, video_row
from bvllm_adapters.bulk.video_table import Rows, table_of
from bvllm_adapters.bulk.workers import check_left
from bvllm_adapters.checks import check_count, takes
from bvllm_adapters.conversation import OpenVideo, ask_batch, open_video
from bvllm_adapters.hosts.base import base_model, tokenizer_of
from bvllm_adapters.hosts.find import processor_of
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.tables.table import TableRow
from bvllm_adapters.video.frames import Progress
from bvllm_adapters.video.sampling import Sampling


@dataclass(frozen=True)
class AskRows:
    """Asks a model about rows of a table, a few or all: `AskRows(model, media=folder)(rows)`.

    Args: see `batch`.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """

    model: nn.Module
    processor: Any = None
    question: str | None = None
    media: Path = Path()
    outside_media: bool = False
    fps: float | None = 1.0
    max_frames: int | None = None
    max_tokens: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 1
    encoding: Encoding | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        check_question(self.question)
        check_count("batch_size", self.batch_size)
        check_count("workers", self.workers, least=0)
        for name in ("max_tokens", "max_new_tokens"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        Sampling(self.fps, None, None, self.max_frames)
        tokenizer_of(self._base)

    @property
    def of(self) -> dict[str, Any]:
        """What results are of, but for the table; as JSON."""
        return {
            "media": str(Path(self.media).resolve()),
            "question": self.question,
            "fps": self.fps,
            "max_frames": self.max_frames,
            "max_tokens": self.max_tokens,
            "max_new_tokens": self.max_new_tokens,
            "skip_similar": None if self.encoding is None else self.encoding.skip_similar,
            "model": model_identity(self._base),
        }

    def __call__(self, rows: Sequence[TableRow]) -> Generator[dict[str, Any], None, None]:
        """What came of each row, of those that cannot be asked first, then a video at a time; of
        one that failed, "error". Nothing but a broken device is raised.

        A row has `row`, its number, `id`, `video`, `columns`, `question`, and
        - `answer`; `tokens`, visual ones, and `max_tokens`, the budget;
        - `frames`: of each chosen one `frame`, its index of `frames_decoded`, `second`, `tokens`,
          `choices`, and `score` where it was chosen by one; `selector`: by what;
        - `seconds` that it took: its part of its batch and of opening its video;
        - `warnings` of a video that is damaged.
        """
        questions, errors = read_rows(rows, self.read)
        yield from errors
        if questions:
            processor = processor_of(self._base) if self.processor is None else self.processor

            def opened(path: Path) -> OpenVideo:
                return open_video(
                    self.model, path, processor=processor, encoding=self._encoding, fps=self.fps,
                    max_frames=self.max_frames, progress=check_left,
                )  # fmt: skip

            yield from rows_by_video(
                questions, opened, self.asked, prompts=self.prompts, batch_size=self.batch_size,
                workers=self.workers,
            )  # fmt: skip

    def read(self, row: TableRow) -> VideoRow:
        """A row as it is asked; RowError for one that cannot be."""
        return read_by(self._selector, self.row_of(row))

    # What another kind of asking does in its own way.

    def row_of(self, row: TableRow) -> VideoRow:
        """A row as a question; RowError for one that is none."""
        return video_row(row, self.media, outside=self.outside_media, question=self.question)

    def prompts(self, row: VideoRow) -> int:
        """How many prompts a row is."""
        return 1

    def asked(self, pairs: Sequence[tuple[Any, OpenVideo]]) -> list[dict[str, Any]]:
        """What came of rows, each with its video; `seconds` are a row's part."""
        begin = time.perf_counter()
        answers = ask_batch(
            [(video, row.question) for row, video in pairs],
            batch_size=self.batch_size,
            query=[row.query if self.reads_query else None for row, _ in pairs],
            max_tokens=self.max_tokens,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,  # the same answer on every run
        )
        each = (time.perf_counter() - begin) / len(pairs)
        return [
            {
                **row.told,
                "answer": answer.text,
                "tokens": answer.trace.num_tokens,
                "max_tokens": answer.trace.max_tokens,
                **choice_told(answer.trace),
                "seconds": each,
            }
            for (row, _), answer in zip(pairs, answers, strict=True)
        ]

    @property
    def _base(self) -> nn.Module:
        return base_model(self.model)

    @cached_property
    def _encoding(self) -> Encoding:
        """What may be kept of a video, where several are open at a time."""
        whole = Encoding() if self.encoding is None else self.encoding
        names = ("device_bytes", "host_bytes", "cache_bytes")
        share = {name: getattr(whole, name) // (self.batch_size + self.workers) for name in names}
        return replace(whole, **share)

    @property
    def reads_query(self) -> bool:
        """Whether the model's selector reads a text in place of the question."""
        return self._selector is not None and takes(self._selector, "query")

    @property
    def _selector(self) -> Any:
        return tokenizer_of(self._base).frame_selector


def batch(
    model: nn.Module,
    table: Rows,
    *,
    processor: Any = None,
    question: str | None = None,
    out: str | Path | None = None,
    rows: Share = None,
    videos: Share = None,
    media: str | Path | None = None,
    outside_media: bool = False,
    fps: float | None = 1.0,
    max_frames: int | None = None,
    max_tokens: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 1,
    encoding: Encoding | None = None,
    workers: int = 1,
    max_errors: float = 0.5,
    retry_errors: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Ask a wrapped or native model about all rows of a table, each video read once.

    It goes on where it was stopped or killed: rows that are in `out` are not asked again. A file
    that cannot be read is its row's result, with the reason. What comes of a row is the same
    whichever rows are asked beside it, but for the rounding of sums where `batch_size` is above 1;
    it is the likeliest answer, and nothing is drawn.

    Args:
        table: JSON lines, a JSON list, CSV or parquet with `video` and `question`; `id` and
            `query`, what a scout reads in place of the question, may stand there too, and other
            columns are kept. Or a folder of videos, a `Table`, or rows as mappings.
        processor: see `open_video`.
        question: of rows that have none, as a folder's.
        out: file of results, JSON lines, a row as soon as it is done. None: nothing is written.
        rows, videos: the share of the table's rows, or of its videos with all their rows, that is
            asked here, as "1::8" or a slice: of several processes each takes its own.
        media: folder that videos are named from; None: the table's. outside_media: whether rows
            may name videos that lie outside of it.
        fps, max_frames: see `read_video`. max_tokens: budget in place of the model's own.
        max_new_tokens: see `ask`.
        batch_size: questions that the language model sees at a time, about several videos if need
            be.
        encoding: see `Encoding`; its bytes are those of all videos that are open at a time.
        workers: threads that read the next videos, and let the model see them, while questions
            about others are answered; 0: none.
        max_errors: the share of rows that may fail; with more the run stops.
        retry_errors: whether rows that failed before are asked again.
        progress: called with (rows done, rows).

    Returns:
        What came of each row, in the table's order, those done before among them; see `AskRows`.

    Raises:
        ValueError, TypeError: for a wrong argument or table, results of something else, or too many
            rows that fail; says which. OSError: results that cannot be written.
    """
    found, folder = table_of(table, media)
    work = AskRows(
        model, processor=processor, question=question, media=folder, outside_media=outside_media,
        fps=fps, max_frames=max_frames, max_tokens=max_tokens, max_new_tokens=max_new_tokens,
        batch_size=batch_size, encoding=encoding, workers=workers,
    )  # fmt: skip
    return run_table(
        work, found, out, rows=rows, videos=videos, max_errors=max_errors,
        retry_errors=retry_errors, progress=progress,
    )  # fmt: skip
