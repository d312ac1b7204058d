"""A model's accuracy on questions of one's own: a table of videos, questions and answers."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.bulk.by_video import read_rows, rows_by_video
from bvllm_adapters.bulk.identity import model_identity
from bvllm_adapters.bulk.run import Run
from bvllm_adapters.checks import check_choice, check_count, check_number, takes
from bvllm_adapters.conversation import OpenVideo, open_video
from bvllm_adapters.evaluation.asking import Asking, ask_rows
from bvllm_adapters.evaluation.summary import Summary, summary_of
from bvllm_adapters.evaluation.table_questions import By, TableQuestion, table_question
from bvllm_adapters.hosts.base import base_model, tokenizer_of
from bvllm_adapters.hosts.find import processor_of
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.selectors.choosing import check_query
from bvllm_adapters.tables.results import Results
from bvllm_adapters.tables.table import Table, read_table
from bvllm_adapters.video.frames import Progress
from bvllm_adapters.video.sampling import Sampling

BY: tuple[By, ...] = ("letter", "likelihood", "match")


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
    if by is not None:
        check_choice("by", by, BY)
    if circular and by not in (None, "letter"):
        raise ValueError(f"circular: got it with by={by!r}, wanted by='letter', which has an order")
    check_count("batch_size", batch_size)
    check_count("max_new_tokens", max_new_tokens)
    check_count("seed", seed, least=0)
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)
    check_number("max_errors", max_errors, least=0, most=1)
    Sampling(fps, None, None, max_frames)
    table = file if isinstance(file, Table) else read_table(file, name="file")
    folder = table.file.parent if media is None else Path(media)
    questions, errors = questions_of(table, folder, by=by, group=group, outside=outside_media)
    base = base_model(model)
    selector = tokenizer_of(base).frame_selector
    for question in questions:
        try:
            check_query(selector, question.query)
        except ValueError as error:
            raise ValueError(f"file: {question.place}: {error}") from error
    how = Asking(
        circular=circular,
        instruction=instruction,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        reads_query=selector is not None and takes(selector, "query"),
    )
    encoding = Encoding() if encoding is None else encoding
    of = {
        "table": table.digest(),
        "media": str(folder.resolve()),
        "by": by,
        "circular": circular,
        "instruction": instruction,
        "fps": fps,
        "max_frames": max_frames,
        "max_tokens": max_tokens,
        "max_new_tokens": max_new_tokens,
        "skip_similar": encoding.skip_similar,
        "model": model_identity(base),
    }
    with Results(out, of) as results:
        numbers = [row.number for row in table.rows]
        run = Run(results, numbers, "file", max_errors, progress)
        to_do = run.left(retry_errors)
        for row in errors:
            if row["row"] in to_do:
                run.keep(row)
        left = [question for question in questions if question.row in to_do]
        run.tell()
        if left:
            processor = processor_of(base) if processor is None else processor

            def opened(path: Path) -> OpenVideo:
                return open_video(
                    model, path, processor=processor, encoding=encoding, fps=fps,
                    max_frames=max_frames,
                )  # fmt: skip

            answered = rows_by_video(
                left,
                opened,
                lambda pairs: ask_rows(pairs, how),
                prompts=lambda question: len(how.orders(question)),
                batch_size=batch_size,
            )
            with closing(answered):
                for row in answered:
                    run.keep(row)
        rows = run.rows
    return FileResults(rows, summary_of(rows, group=group, seed=seed))


def questions_of(
    table: Table,
    media: Path,
    *,
    by: By | None = None,
    group: str | None = None,
    outside: bool = False,
) -> tuple[list[TableQuestion], list[dict[str, Any]]]:
    """Rows that can be asked, and what is said of the others; see `evaluate_file`.

    Raises:
        ValueError: no row can be asked, or none has the column `group`.
    """
    if group is not None and group not in table.columns:
        raise ValueError(f"group: got {group!r}, wanted one of the columns {table.columns}")
    questions, errors = read_rows(
        table.rows, lambda row: table_question(row, media, by=by, outside=outside)
    )
    if not questions:
        raise ValueError(
            f"file: none of {len(errors)} rows can be asked; the first: {errors[0]['error']}"
        )
    return questions, errors
