"""Drawings as SVG: text that any browser shows, and that asks for nothing else."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from bvllm_adapters.report.drawing import (
    Area,
    Circle,
    Drawing,
    Image,
    Line,
    Point,
    Rect,
    Shape,
    Text,
)

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"


def svg(drawing: Drawing) -> str:
    """One <svg> element as wide as its surroundings let it be."""
    width, height = _n(drawing.width), _n(drawing.height)
    shapes = "".join(_element(shape) for shape in drawing.shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{safe(drawing.label)}" '
        f'style="max-width:100%;height:auto" font-family="{FONT}">'
        f"<title>{safe(drawing.label)}</title>{shapes}</svg>"
    )


def safe(text: str) -> str:
    """As HTML and XML may hold it: escaped, without characters that XML has not."""
    kept = (c if c in "\t\n\r" or ord(c) >= 32 else " " for c in text)
    return escape("".join(kept).encode("utf-8", "replace").decode())


def data_uri(data: bytes) -> str:
    kind = "png" if data[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"


def _element(shape: Shape) -> str:
    more = "" if shape.opacity == 1 else f' opacity="{_n(shape.opacity)}"'
    title = f"<title>{safe(shape.title)}</title>" if shape.title else ""
    if isinstance(shape, Text):
        bold = ' font-weight="600"' if shape.bold else ""
        anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
        return (
            f'<text x="{_n(shape.x)}" y="{_n(shape.y)}" font-size="{_n(shape.size)}" '
            f'fill="{shape.fill}"{anchor}{bold}{more}>{title}{safe(shape.text)}</text>'
        )
    if isinstance(shape, Image):
        how = ";image-rendering:pixelated" if shape.crisp else ""
        return (
            f'<image x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" '
            f'height="{_n(shape.height)}" preserveAspectRatio="none" role="img" '
            f'aria-label="{safe(shape.alt)}" style="display:inline{how}" '
            f'href="{data_uri(shape.data)}"{more}><title>{safe(shape.title or shape.alt)}</title>'
            "</image>"
        )
    name, attributes = _plain(shape)
    if title:
        return f"<{name} {attributes}{more}>{title}</{name}>"
    return f"<{name} {attributes}{more}/>"


def _plain(shape: Shape) -> tuple[str, str]:
    if isinstance(shape, Rect):
        radius = f' rx="{_n(shape.radius)}"' if shape.radius else ""
        return "rect", (
            f'x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" '
            f'height="{_n(shape.height)}" fill="{shape.fill}"{radius}'
        )
    if isinstance(shape, Circle):
        return "circle", (
            f'cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.radius)}" fill="{shape.fill}" '
            f'stroke="{shape.stroke}" stroke-width="{_n(shape.width)}"'
        )
    if isinstance(shape, Line):
        return "polyline", (
            f'points="{_points(shape.points)}" fill="none" stroke="{shape.stroke}" '
            f'stroke-width="{_n(shape.width)}" stroke-linejoin="round"'
        )
    assert isinstance(shape, Area)
    return "polygon", f'points="{_points(shape.points)}" fill="{shape.fill}"'


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
