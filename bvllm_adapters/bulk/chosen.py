"""The chosen frames of a table of videos, for models that cannot be opened."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from bvllm_adapters.bulk.by_video import by_video, failed, open_once, raise_if_fatal
from bvllm_adapters.bulk.identity import selector_identity
from bvllm_adapters.bulk.noted import listening, noting
from bvllm_adapters.bulk.run import run_table
from bvllm_adapters.bulk.shards import Share
from bvllm_adapters.bulk.told import choice_told
from bvllm_adapters.bulk.video_row import VideoRow, check_question, read_by, read_rows, video_row
from bvllm_adapters.bulk.video_table import Rows, table_of
from bvllm_adapters.bulk.workers import check_left, in_order
from bvllm_adapters.checks import check_choice, check_count
from bvllm_adapters.selectors.export import MESSAGE_SIZE, messages, save_frames, save_messages
from bvllm_adapters.selectors.frames_of import ChosenFrames, LookedAt, without_model
from bvllm_adapters.tables.table import TableRow
from bvllm_adapters.video.frames import Progress
from bvllm_adapters.video.read import open_source
from bvllm_adapters.video.sampling import Sampling

Save = Literal["frames", "messages"]
SAVE: tuple[Save, ...] = ("frames", "messages")


@dataclass(frozen=True)
class SelectRows:
    """Chooses frames for rows of a table, a few or all: `SelectRows(media=folder)(rows)`.

    Args: see `select_batch`.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """

    num_frames: int = 32
    selector: str | nn.Module = "coverage"
    question: str = ""
    media: Path = Path()
    outside_media: bool = False
    fps: float | None = 1.0
    max_frames: int | None = None
    folder: Path | None = None
    save: Save = "frames"
    size: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        check_question(self.question)
        check_count("num_frames", self.num_frames)
        check_count("workers", self.workers, least=0)
        check_choice("save", self.save, SAVE)
        if self.size is not None:
            check_count("size", self.size, least=16)
        if self.folder is not None and Path(self.folder).exists() and not self.folder.is_dir():
            raise ValueError(f"folder: got {self.folder}, which is a file, wanted a folder")
        Sampling(self.fps, None, None, self.max_frames)
        _ = self._chooser

    @cached_property
    def _chooser(self) -> Any:
        return without_model(self.selector)

    @cached_property
    def of(self) -> dict[str, Any]:
        """What results are of, but for the table; as JSON."""
        saved = None if self.folder is None else [self.save, self.size]
        return {
            "media": str(Path(self.media).resolve()),
            "question": self.question,
            "fps": self.fps,
            "max_frames": self.max_frames,
            "num_frames": self.num_frames,
            "saved": saved,
            "selector": selector_identity(self._chooser),
        }

    def __call__(self, rows: Sequence[TableRow]) -> Generator[dict[str, Any], None, None]:
        """What came of each row, of those that cannot be read first, then a video at a time; of
        one that failed, "error".

        A row has `row`, its number, `id`, `video`, `columns`, `question`, and
        - `frames`: of each chosen one `frame`, its index of `frames_decoded`, `second`, and `score`
          where it was chosen by one; `selector`: by what; `duration` of the video;
        - `saved`: what was written of it, in `folder`;
        - `seconds` that it took, its part of looking at its video among them;
        - `warnings` of a video that is damaged.

        Raises:
            OSError: what is to be saved cannot be written.
        """
        good, errors = read_rows(rows, self.read)
        yield from errors
        with listening(), in_order(self._of_video, by_video(good), self.workers) as found:
            for done in found:
                yield from done

    def read(self, row: TableRow) -> VideoRow:
        """A row as it is done; RowError for one that cannot be."""
        found = video_row(row, self.media, outside=self.outside_media, question=self.question)
        return read_by(self._chooser, found)

    def _looked(self, path: Path) -> LookedAt:
        source = open_source(path, fps=self.fps, max_frames=self.max_frames)
        return LookedAt(source, self._chooser, check_left)

    def _of_video(self, rows: Sequence[VideoRow]) -> list[dict[str, Any]]:
        """What came of rows that have one video."""
        one = open_once(rows, self._looked)
        if one.video is None:
            return one.failures
        with noting() as more:  # most are those of looking, once more
            done = [self._of_row(row, one.video, one.seconds / len(rows)) for row in rows]
        warnings = [*dict.fromkeys([*one.warnings, *more])]
        return [{**row, "warnings": warnings} if warnings else row for row in done]

    def _of_row(self, row: VideoRow, looked: LookedAt, share: float) -> dict[str, Any]:
        begin = time.perf_counter()
        try:
            chosen = looked.choose(
                row.question, self.num_frames, query=row.query, progress=check_left
            )
        except Exception as error:
            raise_if_fatal(error)
            return failed(row, error)
        saved = {} if self.folder is None else {"saved": self._save(row, chosen, self.folder)}
        told = choice_told(chosen.trace, "frame", "score")
        seconds = round(share + time.perf_counter() - begin, 4)
        return {**row.told, **told, "duration": chosen.duration, **saved, "seconds": seconds}

    def _save(self, row: VideoRow, chosen: ChosenFrames, folder: Path) -> str:
        """The name of what was written."""
        name = f"{row.row:06d}"
        try:
            if self.save == "frames":
                question = row.question
                save_frames(chosen, folder / name, question=question, size=self.size, replace=True)
                return name
            name += ".json"
            folder.mkdir(parents=True, exist_ok=True)
            size = MESSAGE_SIZE if self.size is None else self.size
            save_messages(messages(chosen, row.question, size=size), folder / name)
            return name
        except OSError as error:
            raise OSError(
                f"folder: {folder / name}: cannot be written ({error.strerror or error}); what is "
                "done is kept, and the same call goes on from there"
            ) from error


def select_batch(
    table: Rows,
    *,
    num_frames: int = 32,
    selector: str | nn.Module = "coverage",
    question: str = "",
    out: str | Path | None = None,
    folder: str | Path | None = None,
    save: Save = "frames",
    size: int | None = None,
    rows: Share = None,
    videos: Share = None,
    media: str | Path | None = None,
    outside_media: bool = False,
    fps: float | None = 1.0,
    max_frames: int | None = None,
    workers: int = 1,
    max_errors: float = 0.5,
    retry_errors: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Choose frames of each row's video, without the model that will see them; each video is looked
    at once. It goes on where it was stopped or killed, as `batch` does.

    Args:
        table: see `batch`; rows need no question where the selector reads none.
        num_frames, selector, size: see `select_frames` and `save_frames`.
        question: of rows that have none.
        folder: where chosen frames are written, for each row by its number; None: they are not,
            and results tell their indices and times alone.
        save: "frames", a folder of JPEG files with their list, as `save_frames` writes it; or
            "messages", a JSON file with the messages of a chat.
        workers: threads that each take a video of their own; 0: none.
        out, rows, videos, media, outside_media, fps, max_frames, max_errors, retry_errors,
            progress: see `batch`.

    Returns:
        What came of each row, in the table's order, those done before among them; see
        `SelectRows`.

    Raises:
        ValueError, TypeError: for a wrong argument or table, results of something else, or too many
            rows that fail; says which. OSError: what cannot be written.
    """
    found, media_folder = table_of(table, media)
    work = SelectRows(
        num_frames=num_frames, selector=selector, question=question, media=media_folder,
        outside_media=outside_media, fps=fps, max_frames=max_frames,
        folder=None if folder is None else Path(folder), save=save, size=size, workers=workers,
    )  # fmt: skip
    return run_table(
        work, found, out, rows=rows, videos=videos, max_errors=max_errors,
        retry_errors=retry_errors, progress=progress,
    )  # fmt: skip
