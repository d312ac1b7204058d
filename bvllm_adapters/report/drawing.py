"""What figures are made of: a few shapes on a canvas, which `svg` writes and `picture` paints.

Lengths are CSS pixels, from the upper left; colours are "#rrggbb".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

INK, GREY, FAINT, PAPER = "#1b1f24", "#667079", "#dde1e5", "#ffffff"
# Okabe and Ito's, which nobody confuses; one for each question.
HUES = ("#0072b2", "#d55e00", "#009e73", "#8e5a9e", "#b8860b", "#56768f")

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """Any of them. title: what a pointer that rests on it is told."""

    title: str = field(default="", kw_only=True)
    opacity: float = field(default=1.0, kw_only=True)


@dataclass(frozen=True)
class Rect(Shape):
    x: float
    y: float
    width: float
    height: float
    fill: str
    radius: float = 0.0


@dataclass(frozen=True)
class Line(Shape):
    points: Sequence[Point]
    stroke: str
    width: float = 1.0


@dataclass(frozen=True)
class Area(Shape):
    points: Sequence[Point]
    fill: str


@dataclass(frozen=True)
class Circle(Shape):
    x: float
    y: float
    radius: float
    fill: str
    stroke: str = PAPER
    width: float = 1.0


@dataclass(frozen=True)
class Text(Shape):
    """At its baseline. anchor: "start", "middle" or "end"."""

    x: float
    y: float
    text: str
    size: float = 11.0
    fill: str = INK
    anchor: str = "start"
    bold: bool = False


@dataclass(frozen=True)
class Image(Shape):
    """A JPEG or PNG file, stretched; alt: what it shows, for who cannot see it."""

    x: float
    y: float
    width: float
    height: float
    data: bytes
    alt: str
    crisp: bool = False


@dataclass
class Drawing:
    """Shapes, the later ones on top. label: what it is, for who cannot see it."""

    width: float
    height: float
    label: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        self.shapes.extend(shapes)

    def put(self, other: Drawing, x: float, y: float) -> None:
        """Another one on this one, moved there."""
        self.shapes.extend(moved(shape, x, y) for shape in other.shapes)


def moved(shape: Shape, x: float, y: float) -> Shape:
    if isinstance(shape, Line | Area):
        return replace(shape, points=[(a + x, b + y) for a, b in shape.points])
    return replace(shape, x=shape.x + x, y=shape.y + y)  # type: ignore[call-arg, attr-defined]


def clock(second: float, *, exact: bool = True) -> str:
    """75.5 -> "1:15.5"; an hour and more -> "1:00:15"."""
    tenths = round(second * 10)
    whole, rest = divmod(tenths, 10)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    shown = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{shown}.{rest}" if exact and rest else shown


def shortened(text: str, width: float, size: float) -> str:
    """One line of about so many pixels."""
    text = " ".join(text.split())
    most = max(int(width / (0.52 * size)), 4)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def number(value: float) -> str:
    """As short as it may be."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
