"""Questions put to a model a video at a time, so that each is read once."""

from __future__ import annotations

import stat
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bvllm_adapters.conversation import OpenVideo
from bvllm_adapters.evaluation.asking import Asking, Pair, ask_rows, identity
from bvllm_adapters.evaluation.table_questions import TableQuestion
from bvllm_adapters.tables.media_paths import RowError
from bvllm_adapters.video.frames import VideoWarning


def rows_by_video(
    questions: Sequence[TableQuestion], how: Asking, opened: Callable[[Path], OpenVideo]
) -> Iterator[dict[str, Any]]:
    """What came of each row, as soon as its batch is done; of those that failed, "error".

    Videos are taken in the order in which they first come; a batch may be of several.

    Args:
        opened: a path -> the video as the model has seen it.
    """
    waiting: list[Pair] = []
    shares: dict[int, float] = {}  # of the time that opening its video took, of each row
    notes: dict[int, list[str]] = {}

    def done() -> Iterator[dict[str, Any]]:
        for row in _asked(waiting, how):
            row["seconds"] = round(row.get("seconds", 0.0) + shares.pop(row["row"]), 4)
            found = notes.pop(row["row"])
            yield {**row, "warnings": found} if found else row
        waiting.clear()

    for path, of_one in _by_video(questions):
        begin = time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as caught:  # what there is of it is shown
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", VideoWarning)
                video = opened(_checked(path))
        except Exception as error:  # whatever a decoder raises: one video must not end a run
            yield from (_failed(question, error) for question in of_one)
            continue
        seconds = time.perf_counter() - begin
        for question in of_one:
            shares[question.row] = seconds / len(of_one)
            notes[question.row] = [str(one.message) for one in caught]
            waiting.append((question, video))
            if sum(len(how.orders(each)) for each, _ in waiting) >= how.batch_size:
                yield from done()
    yield from done()


def _by_video(questions: Sequence[TableQuestion]) -> Iterator[tuple[Path, list[TableQuestion]]]:
    found: dict[Path, list[TableQuestion]] = {}
    for question in questions:
        found.setdefault(question.video, []).append(question)
    yield from found.items()


def _checked(path: Path) -> Path:
    """RowError for what is neither a file nor a folder: a pipe would never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        kind = stat.filemode(path.stat().st_mode)
        raise RowError(f"{path}: got a device or a pipe ({kind}), wanted a file or folder")
    return path


def _asked(pairs: Sequence[Pair], how: Asking) -> list[dict[str, Any]]:
    """What came of rows; where one fails, of each alone, as the others need not."""
    if not pairs:
        return []
    try:
        return ask_rows(pairs, how)
    except Exception as error:
        if len(pairs) == 1:
            return [_failed(pairs[0][0], error)]
        return [row for pair in pairs for row in _asked([pair], how)]


def _failed(question: TableQuestion, error: Exception) -> dict[str, Any]:
    told = " ".join(str(error).split()) or repr(error)
    if not isinstance(error, ValueError | OSError):
        told = f"{type(error).__name__}: {told}"
    return {**identity(question), "error": f"{question.place}: {told}"}
