"""The rows of a table done one after the other, kept as they are done."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from bvllm_adapters.bulk.shards import Share, share_of
from bvllm_adapters.bulk.video_row import VideoRow, check_some
from bvllm_adapters.checks import check_number
from bvllm_adapters.tables.results import Results
from bvllm_adapters.tables.table import Table, TableRow
from bvllm_adapters.video.frames import Progress


class RowWork(Protocol):
    """What is done with rows, such as `AskRows`."""

    @property
    def of(self) -> Mapping[str, Any]:
        """What results are of, but for the table; as JSON."""

    def read(self, row: TableRow) -> VideoRow:
        """A row as it is done; RowError for one that cannot be."""

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
    name: str = "table",
) -> list[dict[str, Any]]:
    """Do the rows that are not done yet, each on the disk as soon as it is.

    Args: see `bvllm_adapters.batch`. name: of the argument that names the table, for messages.

    Returns:
        What came of the rows of this share, those done before among them, in the table's order.

    Raises:
        ValueError: a wrong argument, no row that can be done, results of something else, too many
            rows that fail. OSError: results that cannot be written.
    """
    check_number("max_errors", max_errors, least=0, most=1)
    own = share_of(table, rows, videos)
    check_some(own, work.read, name)
    with Results(out, {"table": table.digest(), **work.of}) as results:
        done = {row.number for row in own if row.number in results.rows}
        failed = {number for number in done if "error" in results.rows[number]}
        if retry_errors:
            done, failed = done - failed, set()
        if progress is not None:
            progress(len(done), len(own))
        # Closed whatever is raised here, so that no worker goes on.
        with closing(work([row for row in own if row.number not in done])) as found:
            for row in found:
                results.append(row)
                done.add(row["row"])
                if progress is not None:
                    progress(len(done), len(own))
                if "error" not in row:
                    continue
                failed.add(row["row"])
                if len(failed) > max_errors * len(own):
                    raise ValueError(
                        f"{name}: {len(failed)} of {len(own)} rows failed, more than "
                        f"max_errors={max_errors:g} lets; the last: {row['error']}"
                    )
    return [results.rows[number] for number in sorted(done)]
