"""A model's accuracy on questions of one's own: a table of videos, questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.bulk.answers import AskRows
from bvllm_adapters.bulk.run import run_table
from bvllm_adapters.checks import check_choice, check_count
from bvllm_adapters.evaluation.asking import Asking, Pair, ask_rows
from bvllm_adapters.evaluation.summary import Summary, summary_of
from bvllm_adapters.evaluation.table_questions import By, TableQuestion, table_question
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.tables.table import Table, TableRow, read_table
from bvllm_adapters.video.frames import Progress

BY: tuple[By, ...] = ("letter", "likelihood", "match")


@dataclass(frozen=True)
class JudgeRows(AskRows):
    """Asks a model about rows that say what is right, and judges its answers.

    Args: see `evaluate_file`.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """

    by: By | None = None
    circular: bool = False
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.by is not None:
            check_choice("by", self.by, BY)
        if self.circular and self.by not in (None, "letter"):
            raise ValueError(
                f"circular: got it with by={self.by!r}, wanted by='letter', which has an order"
            )
        super().__post_init__()

    @property
    def of(self) -> dict[str, Any]:
        own = {"by": self.by, "circular": self.circular, "instruction": self.instruction}
        return {**super().of, **own}

    def row_of(self, row: TableRow) -> TableQuestion:
        return table_question(row, self.media, by=self.by, outside=self.outside_media)

    def prompts(self, row: Any) -> int:
        return len(self._how.orders(row))

    def asked(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        return ask_rows(pairs, self._how)

    @cached_property
    def _how(self) -> Asking:
        return Asking(
            circular=self.circular,
            instruction=self.instruction,
            max_tokens=self.max_tokens,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            reads_query=self.reads_query,
        )


@dataclass(frozen=True)
class FileResults:
    """What came of a table.

    Args:
        rows: of each row, in the table's order: what was asked, said and predicted, whether that is
            right, and the trace of its first prompt; or "error". summary: of all; `print` shows it.
    """

    rows: list[dict[str, Any]]
    summary: Summary

    def __str__(self) -> str:
        return str(self.summary)


def evaluate_file(
    model: nn.Module,
    file: str | Path | Table,
    *,
    processor: Any = None,
    by: By | None = None,
    circular: bool = False,
    group: str | None = None,
    out: str | Path | None = None,
    media: str | Path | None = None,
    outside_media: bool = False,
    fps: float | None = 1.0,
    max_frames: int | None = None,
    max_tokens: int | None = None,
    max_new_tokens: int = 32,
    instruction: str | None = None,
    batch_size: int = 1,
    encoding: Encoding | None = None,
    max_errors: float = 0.5,
    retry_errors: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> FileResults:
    """Ask a wrapped or native model all questions of a table. Each video is read once.

    A row has `video`, `question`, `answer` and, to choose from, `options`: a list of texts, or an
    object of them by their letters, of which `answer` is the text, the letter or the place from 0.
    Without options `answer` is a text, or a list of those that are right. `id` and `query`, what a
    scout reads in place of the question, may stand there too; other columns are kept.

    Args:
        file: JSON lines, a JSON list, CSV or parquet; see `read_table`.
        by: how answers are judged. "letter": the options are in the prompt, and the letter that the
            model says counts; "likelihood": they are not, and the text that it finds likeliest as
            its answer counts (`right` by the sum over its tokens, as lm-evaluation-harness' acc;
            `right_by_length` by that divided by the text's letters, as its acc_norm); "match": what
            the model says is right if it is an answer, but for case, articles and punctuation; see
            `normalised`. None: "letter" for rows with options, else "match".
        circular: see `Asking`; by letter only.
        group: a column; the summary tells the accuracy for each of its values.
        out: file of results, JSON lines, a row as soon as it is done. One that is there goes on.
        media: folder that videos are named from; None: the table's. outside_media: whether rows
            may name videos that lie outside of it.
        fps, max_frames: see `read_video`. max_tokens: budget in place of the model's own.
        instruction: behind each prompt, in place of our own; "": none.
        batch_size: prompts that the language model sees at a time, of several videos if need be.
        max_errors: the share of rows that may fail; with more the run stops.
        retry_errors: whether rows that failed before are asked again.
        seed: of the intervals' draws.
        progress: called with (rows done, rows).

    Raises:
        ValueError: for a wrong argument or table, results of something else, or too many rows that
            fail; says which, with file, line and column. OSError: results that cannot be written.
    """
    check_count("seed", seed, least=0)
    table = file if isinstance(file, Table) else read_table(file, name="file")
    check_group(table, group)
    work = JudgeRows(
        model, processor=processor, media=table.file.parent if media is None else Path(media),
        outside_media=outside_media, fps=fps, max_frames=max_frames, max_tokens=max_tokens,
        max_new_tokens=max_new_tokens, batch_size=batch_size, encoding=encoding, workers=0,
        by=by, circular=circular, instruction=instruction,
    )  # fmt: skip
    rows = run_table(
        work, table, out, max_errors=max_errors, retry_errors=retry_errors, progress=progress,
        name="file",
    )  # fmt: skip
    return FileResults(rows, summary_of(rows, group=group, seed=seed))


def check_group(table: Table, group: str | None) -> None:
    """ValueError if no row has the column."""
    if group is not None and group not in table.columns:
        raise ValueError(f"group: got {group!r}, wanted one of the columns {table.columns}")
