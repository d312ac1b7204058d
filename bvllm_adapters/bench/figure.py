"""How each stage grows with the video, as an SVG: with a budget left, without one right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from bvllm_adapters.bench.rows import FURTHER_TOKEN, Row
from bvllm_adapters.bench.table import quantity

# Okabe and Ito's colours, which everybody can tell apart; a colour used twice is dashed.
COLOURS = "#000000 #e69f00 #56b4e9 #009e73 #f0e442 #0072b2 #d55e00 #cc79a7".split()
SIDE, LEFT, TOP, GAP, LEGEND = 300, 70, 60, 40, 130  # pixels


def write_figure(rows: Sequence[Row], file: str | Path) -> None:
    """Seconds of each stage over frames, both axes logarithmic; FLOPs where none was timed."""
    Path(file).write_text("\n".join(_svg(rows)) + "\n", encoding="utf-8")


def _svg(rows: Sequence[Row]) -> Iterator[str]:
    timed = any(row.seconds is not None for row in rows)
    what = "seconds" if timed else "FLOPs"
    points = [
        (row, value)
        for row in rows
        if row.stage != FURTHER_TOKEN and (value := row.seconds if timed else row.flops)
    ]
    frames = _Axis([row.frames for row, _ in points], LEFT, SIDE)
    values = _Axis([value for _, value in points], TOP + SIDE, -SIDE)
    stages = list(dict.fromkeys(row.stage for row, _ in points))
    width, height = LEFT + 2 * SIDE + GAP + LEGEND, TOP + SIDE + 60
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
    )
    yield f"<title>{what} of each stage over frames of video, wrapped and unwrapped</title>"
    yield f'<rect width="{width}" height="{height}" fill="white"/>'
    for panel, wrapped in enumerate((True, False)):
        shift = panel * (SIDE + GAP)
        yield f'<g transform="translate({shift} 0)">'
        frame = f'x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"'
        yield f'<rect {frame} fill="none" stroke="#999"/>'
        title = "with a budget (wrapped)" if wrapped else "without (unwrapped)"
        yield _text(LEFT + SIDE / 2, TOP - 12, title, "middle", "bold")
        yield _text(LEFT + SIDE / 2, TOP + SIDE + 40, "frames", "middle")
        for count in dict.fromkeys(row.frames for row, _ in points):
            yield _text(frames(count), TOP + SIDE + 18, str(count), "middle")
        for power in values.powers():
            y = values(10.0**power)
            yield f'<path d="M{LEFT} {y:.1f}h{SIDE}" stroke="#ddd"/>'
            if not panel:
                yield _text(LEFT - 6, y + 4, quantity(10.0**power), "end")
        for i, stage in enumerate(stages):
            line = [
                (frames(row.frames), values(value))
                for row, value in points
                if row.stage == stage and row.wrapped == wrapped
            ]
            if line:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
                yield f'<polyline points="{path}" fill="none" {_style(i)}/>'
            for x, y in line:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_colour(i)}"/>'
        yield "</g>"
    yield _text(LEFT - 6, TOP - 12, what, "end", "bold")
    for i, stage in enumerate(stages):
        x, y = LEFT + 2 * SIDE + GAP + 14, TOP + 10 + 20 * i
        yield f'<path d="M{x} {y}h24" {_style(i)}/>' + _text(x + 30, y + 4, stage)
    yield "</svg>"


class _Axis:
    """A logarithmic axis: value -> pixels from `begin` on, over `length` of them."""

    def __init__(self, values: Sequence[float], begin: float, length: float) -> None:
        self.low, self.high = math.log10(min(values)), math.log10(max(values))
        margin = 0.05 * (self.high - self.low) or 0.5
        self.low, self.high = self.low - margin, self.high + margin
        self.begin, self.length = begin, length

    def __call__(self, value: float) -> float:
        return self.begin + self.length * (math.log10(value) - self.low) / (self.high - self.low)

    def powers(self) -> range:
        """Of ten, that the axis shows."""
        return range(math.ceil(self.low), math.floor(self.high) + 1)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _style(i: int) -> str:
    dash = ' stroke-dasharray="5 3"' if i >= len(COLOURS) else ""
    return f'stroke="{_colour(i)}" stroke-width="2"{dash}'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
