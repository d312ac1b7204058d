"""Drawings as pictures, and the whole report as one: for a paper, a slide, an issue."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from bvllm_adapters.report import drawing as d
from bvllm_adapters.report.costs import budget_told, ledger
from bvllm_adapters.report.page import source_told, timeline_told
from bvllm_adapters.report.sheet import legend, sheet
from bvllm_adapters.report.timeline import WIDTH, timeline

Form = Mapping[str, Any]
SCALE = 2  # pixels of the file for one of the drawing
FINE = 2  # painted so much larger again, for smooth edges
MARGIN = 20.0
_LATIN = 0x17F  # and general punctuation
_WIDER = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "DejaVuSans.ttf", "arial.ttf")
_NOTHING = (255, 255, 255, 0)


def png(forms: Sequence[Form]) -> bytes:
    """The whole report as a PNG file. Letters that no font here has are shown as boxes; in a page
    they are up to the browser."""
    image = painted(report(forms))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def report(forms: Sequence[Form]) -> d.Drawing:
    """Timeline, then contact sheet and ledger: of two questions side by side."""
    several = len(forms) > 1
    found = d.Drawing(WIDTH + 2 * MARGIN, MARGIN, "Report")
    if several:
        for source in dict.fromkeys(source_told(form) for form in forms):
            _say(found, source, 12, d.GREY)
    else:
        (form,) = forms
        _say(found, str(form.get("question") or "Chosen frames"), 19, bold=True)
        if form.get("answer") is not None:
            _say(found, str(form["answer"]), 15)
        _say(found, f"{source_told(form)} · {budget_told(form)}", 12, d.GREY)
    found.put(timeline(forms), MARGIN, found.height + 12)
    found.height += timeline(forms).height + 12
    _say(found, timeline_told(forms), 11, d.GREY)
    columns = 2 if several else 1
    wide = (WIDTH - 32) / 2 if several else WIDTH
    for begin in range(0, len(forms), columns):
        parts = [_of_one(forms, i, wide) for i in range(begin, min(begin + columns, len(forms)))]
        for i, part in enumerate(parts):
            found.put(part, MARGIN + i * (wide + 32), found.height + 16)
        found.height += max(part.height for part in parts) + 16
    found.height += MARGIN
    return found


def _of_one(forms: Sequence[Form], index: int, wide: float) -> d.Drawing:
    """Contact sheet and ledger of one question."""
    form, hue = forms[index], d.HUES[index % len(d.HUES)]
    found = d.Drawing(wide + 2 * MARGIN, 0, "")
    if len(forms) > 1:
        found.add(d.Line([(MARGIN, 2), (MARGIN + wide, 2)], hue, 2))
        found.height = 8
        words = str(form.get("question") or "(no question)")
        _say(found, f"{index + 1}  {words}", 14, bold=True)
        if form.get("answer") is not None:
            _say(found, str(form["answer"]), 14, hue)
        _say(found, budget_told(form), 11.5, d.GREY)
    if form.get("note"):
        _say(found, f"Note: {form['note']}", 11, d.GREY)
    _say(found, legend(form), 11, d.GREY)
    for part in (sheet(form, hue, wide), ledger(form, hue, wide) if form.get("seconds") else None):
        if part is not None:
            found.put(part, MARGIN, found.height + 8)
            found.height += part.height + 4
    moved = d.Drawing(wide, found.height, "")
    moved.put(found, -MARGIN, 0)
    return moved


def _say(to: d.Drawing, text: str, size: float, fill: str = d.INK, *, bold: bool = False) -> None:
    """Lines of text below what is there."""
    for line in wrapped(text, size, to.width - 2 * MARGIN):
        to.height += size * 1.4
        to.add(d.Text(MARGIN, to.height - 0.35 * size, line, size, fill, bold=bold))


def painted(drawing: d.Drawing) -> Pictures.Image:
    """RGB on white, `SCALE` times as large."""
    scale = SCALE * FINE
    size = round(drawing.width * scale), round(drawing.height * scale)
    image = Pictures.new("RGBA", size, d.PAPER)
    for shape in drawing.shapes:
        if shape.opacity < 1:
            left, top, wide, high = _bounds(shape, drawing)
            over = Pictures.new("RGBA", (round(wide * scale), round(high * scale)), _NOTHING)
            _paint(over, d.moved(shape, -left, -top), scale)
            over.putalpha(
                over.getchannel("A").point([round(a * shape.opacity) for a in range(256)])
            )
            at = max(round(left * scale), 0), max(round(top * scale), 0)
            image.alpha_composite(over, at)
        else:
            _paint(image, shape, scale)
    small = size[0] // FINE, size[1] // FINE
    return image.convert("RGB").resize(small, Pictures.Resampling.LANCZOS)


def _bounds(shape: d.Shape, drawing: d.Drawing) -> tuple[int, int, int, int]:
    """Left, top, width and height of what holds it."""
    if not isinstance(shape, d.Line | d.Area):
        return 0, 0, round(drawing.width), round(drawing.height)
    xs, ys = zip(*shape.points, strict=True)
    left, top = max(int(min(xs)) - 3, 0), max(int(min(ys)) - 3, 0)
    return left, top, int(max(xs)) + 4 - left, int(max(ys)) + 4 - top


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Lines no wider than so many pixels."""
    font, lines = _font_for(text, round(size * 4)), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > 4 * width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines if lines[0] else []


def _paint(image: Pictures.Image, shape: d.Shape, scale: int) -> None:
    on = ImageDraw.Draw(image)
    if isinstance(shape, d.Rect):
        x, y = shape.x * scale, shape.y * scale
        right, foot = x + shape.width * scale - 1, y + shape.height * scale - 1
        if right >= x and foot >= y:
            on.rounded_rectangle((x, y, right, foot), shape.radius * scale, shape.fill)
    elif isinstance(shape, d.Line):
        points = [(x * scale, y * scale) for x, y in shape.points]
        on.line(points, shape.stroke, max(round(shape.width * scale), 1), joint="curve")
    elif isinstance(shape, d.Area):
        on.polygon([(x * scale, y * scale) for x, y in shape.points], shape.fill)
    elif isinstance(shape, d.Circle):
        x, y, radius = shape.x * scale, shape.y * scale, shape.radius * scale
        around = (x - radius, y - radius, x + radius, y + radius)
        on.ellipse(around, shape.fill, shape.stroke, max(round(shape.width * scale), 1))
    elif isinstance(shape, d.Image):
        how = Pictures.Resampling.NEAREST if shape.crisp else Pictures.Resampling.BICUBIC
        wide, high = max(round(shape.width * scale), 1), max(round(shape.height * scale), 1)
        part = Pictures.open(io.BytesIO(shape.data)).convert("RGB").resize((wide, high), how)
        image.paste(part, (round(shape.x * scale), round(shape.y * scale)))
    elif isinstance(shape, d.Text):
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        at = (shape.x * scale, shape.y * scale)
        heavy = round(0.018 * shape.size * scale) if shape.bold else 0
        font = _font_for(shape.text, round(shape.size * scale))
        on.text(at, shape.text, shape.fill, font, anchor=anchor, stroke_width=heavy)


@lru_cache
def _font(size: int, name: str | None = None) -> Any:
    """Pillow's own, which is there wherever Pillow is, or a system's of this name; None: it has
    not that."""
    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _font_for(text: str, size: int) -> Any:
    """Pillow's own has Latin letters alone: for others one of the system's, if there is one."""
    if any(ord(letter) > _LATIN and not 0x2010 <= ord(letter) <= 0x2026 for letter in text):
        for name in _WIDER:
            if (found := _font(size, name)) is not None:
                return found
    return _font(size)
