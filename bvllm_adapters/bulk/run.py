"""The rows of a table done one after the other, kept as they are done."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from bvllm_adapters.bulk.shards import Share, share_of
from bvllm_adapters.checks import check_number
from bvllm_adapters.tables.results import Results
from bvllm_adapters.tables.table import Table, TableRow
from bvllm_adapters.video.frames import Progress


class RowWork(Protocol):
    """What is done with rows, such as `AskRows`."""

    @property
    def of(self) -> Mapping[str, Any]:
        """What results are of, but for the table; as JSON."""

    def check(self, rows: Sequence[TableRow]) -> None:
        """ValueError if none of the rows can be done."""

    def __call__(self, rows: Sequence[TableRow]) -> Generator[dict[str, Any], None, None]:
        """What came of each row, in any order; of one that failed, "error"."""


def run_table(
    work: RowWork,
    table: Table,
    out: str | Path | None,
    *,
    rows: Share = None,
    videos: Share = None,
    max_errors: float = 0.5,
    retry_errors: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Do the rows that are not done yet, each on the disk as soon as it is.

    Args: see `bvllm_adapters.batch`.

    Returns:
        What came of the rows of this share, those done before among them, in the table's order.

    Raises:
        ValueError: a wrong argument, results of something else, too many rows that fail.
        OSError: results that cannot be written.
    """
    check_number("max_errors", max_errors, least=0, most=1)
    own = share_of(table, rows, videos)
    if own:
        work.check(own)
    with Results(out, {"table": table.digest(), **work.of}) as results:
        run = Run(results, [row.number for row in own], "table", max_errors, progress)
        left = run.left(retry_errors)
        run.tell()
        if left:
            # Closed whatever is raised here, so that no worker goes on.
            with closing(work([row for row in own if row.number in left])) as found:
                for row in found:
                    run.keep(row)
        return run.rows


class Run:
    """Rows that are done, and whether so many fail that the rest is not worth its time.

    Args:
        numbers: of the rows that are to be done, of the table's.
        name: of the argument that names the table, for messages.
        max_errors: the share of them that may fail.
        progress: called with (rows done, rows).
    """

    def __init__(
        self,
        results: Results,
        numbers: Sequence[int],
        name: str,
        max_errors: float,
        progress: Progress | None,
    ) -> None:
        self.results, self.numbers, self.name = results, numbers, name
        self.max_errors, self.progress = max_errors, progress
        self._done = [number for number in numbers if number in results.rows]
        self._failed = {number for number in self._done if "error" in results.rows[number]}

    def left(self, retry_errors: bool) -> set[int]:
        """Numbers of rows that are not done, or failed and are done again."""
        if retry_errors:
            self._done = [number for number in self._done if number not in self._failed]
            self._failed = set()
        return set(self.numbers) - set(self._done)

    def keep(self, row: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: more rows have failed than may. OSError: it cannot be written.
        """
        self.results.append(row)
        self._done.append(row["row"])
        self.tell()
        if "error" not in row:
            return
        self._failed.add(row["row"])
        if len(self._failed) > self.max_errors * len(self.numbers):
            raise ValueError(
                f"{self.name}: {len(self._failed)} of {len(self.numbers)} rows failed, more than "
                f"max_errors={self.max_errors:g} lets; the last: {row['error']}"
            )

    def tell(self) -> None:
        if self.progress is not None:
            self.progress(len(self._done), len(self.numbers))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What came of all rows that are done, in the table's order."""
        return [self.results.rows[number] for number in sorted(self._done)]
