"""Rows of a table taken a video at a time, so that each is read once, the next ones ahead."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from bvllm_adapters.bulk.noted import listening, noting
from bvllm_adapters.bulk.video_row import R, VideoRow
from bvllm_adapters.bulk.workers import in_order
from bvllm_adapters.tables.media_paths import RowError

V = TypeVar("V")
Result = dict[str, Any]


@dataclass
class Opened(Generic[R, V]):
    """A video with its rows.

    Args:
        failures: what is said of the rows, where it could not be opened. seconds: that it took.
        warnings: of the video.
    """

    rows: Sequence[R]
    video: V | None = None
    failures: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


def open_once(rows: Sequence[R], opened: Callable[[Path], V]) -> Opened[R, V]:
    """The video that rows have in common; it takes a `listening` block around it.

    Args: see `rows_by_video`.
    """
    begin = time.perf_counter()
    out: Opened[R, V] = Opened(rows)
    with noting() as out.warnings:
        try:
            out.video = opened(checked(rows[0].video))
        except Exception as error:  # whatever a decoder raises: one video must not end a run
            raise_if_fatal(error)
            out.failures = [failed(row, error) for row in rows]
    out.seconds = time.perf_counter() - begin
    return out


def rows_by_video(
    rows: Sequence[R],
    opened: Callable[[Path], V],
    asked: Callable[[Sequence[tuple[R, V]]], list[Result]],
    *,
    prompts: Callable[[R], int] = lambda row: 1,
    batch_size: int = 1,
    workers: int = 0,
) -> Generator[Result, None, None]:
    """What came of each row, as soon as its batch is done; of those that failed, "error".

    Videos are taken in the order in which they first come; a batch may be of several.

    Args:
        opened: a path -> the video, as it is asked.
        asked: rows, each with its video -> what came of each; where it raises, each is asked alone.
        prompts: how many a row is. batch_size: as many prompts make a batch.
        workers: threads that open the next videos meanwhile.
    """
    waiting: list[tuple[R, V]] = []
    shares: dict[int, Opened[R, V]] = {}

    def done() -> Iterator[Result]:
        for row in _asked(waiting, asked):
            of = shares.pop(row["row"])
            seconds = row.get("seconds", 0.0) + of.seconds / len(of.rows)
            row["seconds"] = round(seconds, 4)
            yield {**row, "warnings": of.warnings} if of.warnings else row
        waiting.clear()

    def one_opened(of_one: list[R]) -> Opened[R, V]:
        return open_once(of_one, opened)

    with listening(), in_order(one_opened, by_video(rows), workers) as videos:
        for one in videos:
            yield from one.failures
            video, one.video = one.video, None  # no longer held than a row waits
            if video is None:
                continue
            for row in one.rows:
                shares[row.row] = one
                waiting.append((row, video))
                if sum(prompts(each) for each, _ in waiting) >= batch_size:
                    yield from done()
            del video
        yield from done()


def by_video(rows: Iterable[R]) -> list[list[R]]:
    """Rows of one video together, in the order in which videos first come."""
    found: dict[Path, list[R]] = {}
    for row in rows:
        found.setdefault(row.video, []).append(row)
    return [*found.values()]


def checked(path: Path) -> Path:
    """RowError for what is neither a file nor a folder: a pipe would never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        kind = stat.filemode(path.stat().st_mode)
        raise RowError(f"{path}: got a device or a pipe ({kind}), wanted a file or folder")
    return path


def failed(row: VideoRow, error: Exception) -> Result:
    """What is said of a row that failed."""
    told = " ".join(str(error).split()) or repr(error)
    if not isinstance(error, ValueError | OSError):
        told = f"{type(error).__name__}: {told}"
    return {**row.told, "error": f"{row.place}: {told}"}


def raise_if_fatal(error: Exception) -> None:
    """An error of the device itself, after which every row would fail, is raised once more."""
    fatal = getattr(torch, "AcceleratorError", None)  # torch 2.8; running out of memory is none
    if fatal is not None and isinstance(error, fatal):
        raise error


def _asked(
    pairs: Sequence[tuple[R, V]], asked: Callable[[Sequence[tuple[R, V]]], list[Result]]
) -> list[Result]:
    """What came of rows; where one fails, of each alone, as the others need not."""
    if not pairs:
        return []
    try:
        with noting():  # what reading chosen frames again warns of was noted when it was opened
            return asked(pairs)
    except Exception as error:
        raise_if_fatal(error)
        if len(pairs) == 1:
            return [failed(pairs[0][0], error)]
    return [row for pair in pairs for row in _asked([pair], asked)]
