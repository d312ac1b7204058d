"""What was measured and counted, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bvllm_adapters.bench.counted import Work

TOTAL = "total"  # the whole answer; stages may overlap, so their sum may be more
FURTHER_TOKEN = "further token"  # one of those that "generate" is the sum of


@dataclass(frozen=True)
class Row:
    """One stage at one length of video, with a budget or without. None: not measured.

    Args:
        frames: of the video. stage: as in the ledger; "total" is the whole answer as one waits
            for it, "further token" the mean one of those that "generate" makes.
        wrapped: whether under a budget.
        seconds: median over the repetitions. fastest, slowest: of them.
        share: of the seconds of all stages or, where none were measured, of their FLOPs.
        flops: of matrix products, convolutions and attention, two for a multiply and add. Of the
            language model's attention what the causal mask hides is left out. None: it has none
            of these.
        bytes: of what it leaves for the stages after it.
        peak_bytes: allocated on the CUDA device while it ran, else resident of the whole process.
        tokens: visual tokens that the language model reads.
        note: why something was not measured.
    """

    frames: int
    stage: str
    wrapped: bool
    seconds: float | None
    fastest: float | None
    slowest: float | None
    share: float | None
    flops: int | None
    bytes: int | None
    peak_bytes: int | None
    tokens: int
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(
    work: Mapping[str, Work],
    *,
    frames: int,
    wrapped: bool,
    tokens: int,
    further_tokens: int,
    seconds: Sequence[Mapping[str, float]] = (),
    peaks: Mapping[str, int] | None = None,
    note: str | None = None,
) -> list[Row]:
    """Rows of all stages, in the order they ran, a mean further token and the total.

    Args:
        work: of each stage. seconds: of each stage and TOTAL, for each repetition; none: not run.
        peaks: peak bytes of each stage. further_tokens: that stage "generate" made.
    """
    peaks = peaks or {}
    names = [name for name in {**(seconds[0] if seconds else {}), **work} if name != TOTAL]
    taken = {name: [run.get(name, 0.0) for run in seconds] for name in [*names, TOTAL]}
    weights: Mapping[str, float] = (
        {name: median(taken[name]) for name in names}
        if seconds
        else {name: work[name].flops or 0 for name in names}
    )
    whole = sum(weights.values())

    def row(stage: str, took: Sequence[float], done: Work | None, share: float | None) -> Row:
        return Row(
            frames=frames,
            stage=stage,
            wrapped=wrapped,
            seconds=median(took) if took else None,
            fastest=min(took, default=None),
            slowest=max(took, default=None),
            share=share,
            flops=None if done is None else done.flops,
            bytes=None if done is None else done.bytes,
            peak_bytes=max(peaks.values(), default=None) if stage == TOTAL else peaks.get(stage),
            tokens=tokens,
            note=note,
        )

    rows = [row(name, taken[name], work.get(name), weights[name] / whole) for name in names]
    if "generate" in names and further_tokens:
        done, took = work["generate"], taken["generate"]
        each = Work((done.flops or 0) // further_tokens, (done.bytes or 0) // further_tokens)
        rows.append(row(FURTHER_TOKEN, [run / further_tokens for run in took], each, None))
    all_work = Work(sum(done.flops or 0 for done in work.values()), None)
    rows.append(row(TOTAL, taken[TOTAL], all_work, None))
    return rows
