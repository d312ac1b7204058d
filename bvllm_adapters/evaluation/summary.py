"""What rows of results come to: accuracy with its interval, in all and by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from bvllm_adapters.evaluation.intervals import bootstrap

NO_GROUP = "(none)"


@dataclass(frozen=True)
class Part:
    """Of all rows, or of a group.

    Args:
        accuracy: share of right rows among those that were asked; low, high: its 95 % interval, by
            a bootstrap over videos. rows: how many were asked. videos: about how many.
    """

    accuracy: float
    low: float
    high: float
    rows: int
    videos: int

    def __str__(self) -> str:
        return f"{self.accuracy:.3f}  {self.low:.3f} - {self.high:.3f}"


@dataclass(frozen=True)
class Summary:
    """Of a table.

    Args:
        whole: of all rows that were asked. by_length: by likelihood, the like by that of a letter.
        each_time: with options turned, share of all times that are right.
        unparsed: rows of whose answer nobody knows what it means; they are not right.
        errors: rows that failed, which accuracy is not of. reasons: the first few.
        damaged: rows about videos of which not all could be read.
        tokens, most_tokens: visual tokens of a prompt, on average and at most. max_tokens: the
            budget; None: no limit. over: rows above it, of which there should be none.
        seconds: of a row, on average, its part of opening its video included.
        group: the column; groups: of each of its values.
    """

    whole: Part | None
    rows: int
    unparsed: int
    errors: int
    reasons: tuple[str, ...]
    damaged: int
    tokens: float
    most_tokens: int
    max_tokens: int | None
    over: int
    seconds: float
    by_length: Part | None = None
    each_time: float | None = None
    group: str | None = None
    groups: Mapping[str, Part] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts and lists, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def summary_of(
    rows: Sequence[Mapping[str, Any]], *, group: str | None = None, seed: int = 0
) -> Summary:
    """Of rows of results, see `evaluate_file`.

    Args:
        group: a column. seed: of the intervals' draws.
    """
    asked = [row for row in rows if "error" not in row]
    failed = [row for row in rows if "error" in row]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    if group is not None:
        for row in asked:
            groups.setdefault(str(row["columns"].get(group, NO_GROUP)), []).append(row)
    budgets = {row["max_tokens"] for row in asked}  # one: of other settings there are no rows
    turned = [row for row in asked if "right_times" in row]
    scored = [row for row in asked if "right_by_length" in row]
    times = sum(len(row["said"]) for row in turned)
    return Summary(
        whole=_part(asked, seed),
        rows=len(rows),
        unparsed=sum("unparsed" in row for row in asked),
        errors=len(failed),
        reasons=tuple(row["error"] for row in failed[:3]),
        damaged=sum("warnings" in row for row in asked),
        tokens=fmean(row["tokens"] for row in asked) if asked else 0.0,
        most_tokens=max((row["tokens"] for row in asked), default=0),
        max_tokens=budgets.pop() if budgets else None,
        over=sum(_is_over(row) for row in asked),
        seconds=fmean(row["seconds"] for row in asked) if asked else 0.0,
        by_length=_part(scored, seed, "right_by_length"),
        each_time=sum(row["right_times"] for row in turned) / times if times else None,
        group=group,
        groups={name: _must(of, seed) for name, of in sorted(groups.items())},
    )


def _part(rows: Sequence[Mapping[str, Any]], seed: int, key: str = "right") -> Part | None:
    """None: there are no rows."""
    videos: dict[str, list[bool]] = {}
    for row in rows:
        videos.setdefault(row["video"], []).append(bool(row[key]))
    return Part(*bootstrap([*videos.values()], seed=seed), len(rows), len(videos)) if rows else None


def _must(rows: Sequence[Mapping[str, Any]], seed: int) -> Part:
    part = _part(rows, seed)
    assert part is not None
    return part


def _is_over(row: Mapping[str, Any]) -> bool:
    budget = row["max_tokens"]
    return budget is not None and row["tokens"] > budget


def _lines(found: Summary) -> Iterator[str]:
    whole = found.whole
    if whole is None:
        yield f"accuracy  none: all {found.rows} rows failed"
    else:
        yield f"accuracy  {whole.accuracy:.3f}, 95 % interval {whole.low:.3f} - {whole.high:.3f}"
        if found.by_length is not None:
            part = found.by_length
            yield (
                f"          {part.accuracy:.3f}, {part.low:.3f} - {part.high:.3f} by likelihood "
                "over length"
            )
        if found.each_time is not None:
            yield f"          {found.each_time:.3f} of all orders of options, each on its own"
        yield f"rows      {whole.rows} of {found.rows} in the table"
        yield f"videos    {whole.videos}"
    if found.unparsed:
        yield f"unparsed  {found.unparsed}, counted as not right"
    if found.errors:
        yield f"errors    {found.errors}, not counted; {'; '.join(found.reasons)}"
    if found.damaged:
        yield f"damaged   {found.damaged} rows about videos that could not be read in full"
    budget = "no limit" if found.max_tokens is None else f"a budget of {found.max_tokens}"
    if found.max_tokens is not None:
        budget += f": {f'above it in {found.over} rows' if found.over else 'never above it'}"
    yield f"tokens    {found.tokens:.1f} on average, {found.most_tokens} at most, of {budget}"
    yield f"seconds   {found.seconds:.2f} a row"
    if found.group is not None:
        width = max([len(name) for name in found.groups] + [len(found.group)])
        yield ""
        yield f"{found.group:<{width}}  accuracy  95 % interval   rows  videos"
        for name, part in found.groups.items():
            yield (
                f"{name:<{width}}  {part.accuracy:>8.3f}  {part.low:.3f} - {part.high:.3f}"
                f"  {part.rows:>5}  {part.videos:>6}"
            )
