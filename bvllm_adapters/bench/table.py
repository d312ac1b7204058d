"""Rows for people: a table of each length with and without a budget, and how things grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from bvllm_adapters.bench.rows import TOTAL, Row


def table(rows: Sequence[Row]) -> str:
    """All rows; those without a budget with their ratio to the same stage with it."""
    return "\n".join(_tables(rows))


def growth(rows: Sequence[Row]) -> str:
    """A line for each length: tokens, seconds, FLOPs and peak memory of whole answers."""
    return "\n".join(_growth(rows))


def quantity(value: float | None, unit: str = "") -> str:
    """Three digits and a prefix: 2520000000.0, "FLOP" -> "2.52 GFLOP"; None: "-"."""
    if value is None:
        return "-"
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    bound = {(row.frames, row.stage): row for row in rows if row.wrapped}
    for (frames, wrapped), group in groupby(rows, key=lambda row: (row.frames, row.wrapped)):
        stages = list(group)
        tokens = f"{frames} frames, {stages[0].tokens} visual tokens"
        if wrapped:
            yield f"{tokens}: wrapped"
            ratios = ""
        else:
            yield f"{tokens}: unwrapped, and how many times as much"
            ratios = f"{'x s':>9}{'x FLOP':>9}"
        if stages[0].note is not None:
            yield f"  seconds and peak not measured: {stages[0].note}"
        yield (
            f"  {'stage':<14}{'seconds':>9}  {'fastest, slowest':<18}{'share':>6}"
            f"{'FLOP':>9}{'bytes':>10}{'peak':>10}{ratios}"
        )
        for row in stages:
            yield f"  {_cells(row, None if wrapped else bound.get((frames, row.stage)))}".rstrip()
        yield ""


def _cells(row: Row, wrapped: Row | None) -> str:
    spread = "" if row.fastest is None else f"{row.fastest:.4f}, {row.slowest:.4f}"
    share = "" if row.share is None else f"{100 * row.share:.1f}%"
    seconds = "-" if row.seconds is None else f"{row.seconds:.4f}"
    text = (
        f"{row.stage:<14}{seconds:>9}  {spread:<18}{share:>6}{quantity(row.flops):>9}"
        f"{quantity(row.bytes, 'B'):>10}{quantity(row.peak_bytes, 'B'):>10}"
    )
    if wrapped is not None:
        text += f"{_ratio(row.seconds, wrapped.seconds):>9}{_ratio(row.flops, wrapped.flops):>9}"
    return text


def _growth(rows: Sequence[Row]) -> Iterator[str]:
    yield "whole answers with a budget (wrapped) and without (unwrapped)"
    yield f"{'':>7}{'tokens':^18}{'seconds':^27}{'FLOP':^27}{'peak bytes':^18}".rstrip()
    pair = f"{'with':>9}{'without':>9}"
    yield f"{'frames':>7}{pair}{pair}{'ratio':>9}{pair}{'ratio':>9}{pair}"
    totals = {(row.frames, row.wrapped): row for row in rows if row.stage == TOTAL}
    for frames in dict.fromkeys(row.frames for row in rows):
        bound, free = totals[frames, True], totals[frames, False]
        yield (
            f"{frames:>7}{bound.tokens:>9}{free.tokens:>9}"
            f"{_seconds(bound.seconds):>9}{_seconds(free.seconds):>9}"
            f"{_ratio(free.seconds, bound.seconds):>9}"
            f"{quantity(bound.flops):>9}{quantity(free.flops):>9}"
            f"{_ratio(free.flops, bound.flops):>9}"
            f"{quantity(bound.peak_bytes):>9}{quantity(free.peak_bytes):>9}"
        )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:#.3g}".rstrip(".")


def _ratio(value: float | None, base: float | None) -> str:
    if not value or not base:
        return "-"
    return f"{value / base:.2f}" if value < 100 * base else f"{value / base:,.0f}"
