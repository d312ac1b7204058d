from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bvllm_adapters.bench.counted import Work
from bvllm_adapters.bench.figure import write_figure
from bvllm_adapters.bench.rows import FURTHER_TOKEN, TOTAL, rows_of
from bvllm_adapters.bench.table import growth, quantity, table

WORK = {
    "tower": Work(6000, 100),
    "prefill": Work(3000, 200),
    "generate": Work(1000, 400),
    "merge": Work(0, 8),
}
BUSY = {name: Work(4 * (work.flops or 0), work.bytes) for name, work in WORK.items()}
RUNS = [
    {"decode": 1.0, "tower": 4.0, "merge": 0.0, "prefill": 3.0, "generate": 2.0, TOTAL: 9.0},
    {"decode": 1.5, "tower": 5.0, "merge": 0.0, "prefill": 3.0, "generate": 2.5, TOTAL: 9.5},
    {"decode": 0.5, "tower": 4.0, "merge": 0.0, "prefill": 2.0, "generate": 2.0, TOTAL: 8.0},
]


@pytest.fixture
def rows():
    def of(frames, wrapped, work, **measured):
        return rows_of(
            work, frames=frames, wrapped=wrapped, tokens=8 if wrapped else 16 * frames,
            further_tokens=4, **measured,
        )  # fmt: skip

    return [
        *of(60, True, WORK, seconds=RUNS, peaks={"tower": 2 * 10**9, "prefill": 10**9}),
        *of(60, False, BUSY, seconds=[{n: 3 * s for n, s in run.items()} for run in RUNS]),
        *of(240, True, WORK, seconds=RUNS),
        *of(240, False, BUSY, note="too large"),
    ]


def test_rows(rows):
    by_stage = {row.stage: row for row in rows if row.frames == 60 and row.wrapped}
    # As they ran, and those that only were counted; the mean further token and the total behind.
    assert list(by_stage) == [
        "decode", "tower", "merge", "prefill", "generate", FURTHER_TOKEN, TOTAL
    ]  # fmt: skip
    tower, token, total = (by_stage[name] for name in ("tower", FURTHER_TOKEN, TOTAL))
    assert (tower.seconds, tower.fastest, tower.slowest) == (4.0, 4.0, 5.0)
    assert tower.share == 0.4 and tower.peak_bytes == 2 * 10**9
    assert (token.seconds, token.flops, token.bytes, token.share) == (0.5, 250, 100, None)
    assert (total.seconds, total.flops, total.peak_bytes) == (9.0, 10000, 2 * 10**9)
    assert by_stage["decode"].flops is None


def test_shares_of_what_was_not_measured_are_those_of_flops(rows):
    shares = {row.stage: row.share for row in rows if row.note is not None}
    assert shares == {
        "tower": 0.6,
        "merge": 0.0,
        "prefill": 0.3,
        "generate": 0.1,
        FURTHER_TOKEN: None,
        TOTAL: None,
    }


def test_table(rows):
    text = table(rows)
    assert "60 frames, 8 visual tokens: wrapped" in text
    assert "60 frames, 960 visual tokens: unwrapped" in text
    assert "seconds and peak not measured: too large" in text
    unwrapped = text.split("60 frames, 960")[1].split("240 frames")[0]
    (tower,) = [line for line in unwrapped.splitlines() if "tower" in line]
    assert tower.split()[-2:] == ["3.00", "4.00"]  # times the seconds, times the FLOPs


def test_growth(rows):
    lines = growth(rows).splitlines()
    assert len({len(line.rstrip()) for line in lines[2:]}) == 1  # in columns
    assert lines[-2].split()[:6] == ["60", "8", "960", "9.00", "27.0", "3.00"]
    assert lines[-1].split()[:6] == ["240", "8", "3840", "9.00", "-", "-"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_600, "1.00 MB"),
        (123_456, "123 kB"), (2_520_000_000, "2.52 GB"), (0.00123, "0.00123 B"), (5e15, "5.00 PB"),
    ],
)  # fmt: skip
def test_quantities_have_three_digits(value, text):
    assert quantity(value, "B") == text


@pytest.mark.parametrize("timed", [True, False])
def test_figure(rows, tmp_path, timed):
    shown = rows if timed else [row for row in rows if row.seconds is None]
    write_figure(shown, tmp_path / "growth.svg")
    figure = ElementTree.parse(tmp_path / "growth.svg").getroot()
    texts = [text.text for text in figure.iter("{http://www.w3.org/2000/svg}text")]
    assert ("seconds" if timed else "FLOPs") in texts
    assert {"tower", "prefill", "total", "240"} <= set(texts)
    lines = list(figure.iter("{http://www.w3.org/2000/svg}polyline"))
    # With a budget decode, tower, prefill, generate and total; counted, all but decode.
    assert len(lines) == (10 if timed else 4)
