"""The timeline: what frames scored and which were chosen, the questions one below the other over
one axis of time, so that one sees the choice change.

Axes: T frames read, K queries of a learned selector, M chosen frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bvllm_adapters.report.drawing import (
    FAINT,
    GREY,
    HUES,
    INK,
    PAPER,
    Area,
    Circle,
    Drawing,
    Image,
    Line,
    Rect,
    Text,
    clock,
    number,
    shortened,
)
from bvllm_adapters.report.overlay import picture_of, size_of, smaller, strip

Form = Mapping[str, Any]
Span = tuple[float, float]
"""Seconds that the axis begins and ends at."""
WIDTH, LEFT, RIGHT = 960.0, 92.0, 14.0
PLOT = WIDTH - LEFT - RIGHT
THUMB, GAP, CURVE, TRACK = 58.0, 24.0, 46.0, 22.0
COLUMNS = 480  # of the queries' scores; of more frames the best of each column is shown
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 86400)


def timeline(forms: Sequence[Form]) -> Drawing:
    """All questions about one video, or about videos whose times are compared."""
    span = _span(forms)
    asked = [str(form.get("question") or "") for form in forms]
    lanes = [lane(form, i, span, len(forms) > 1) for i, form in enumerate(forms)]
    height = sum(each.height for each in lanes) + 30
    label = "Scores and chosen frames over time: " + "; ".join(
        f"{asked[i] or 'no question'}: " + ", ".join(clock(f["second"]) for f in form["frames"])
        for i, form in enumerate(forms)
    )
    drawing = Drawing(WIDTH, height, label)
    _axis(drawing, height - 30, span)
    y = 0.0
    for each in lanes:
        drawing.put(each, 0, y)
        y += each.height
    return drawing


def lane(form: Form, index: int, span: Span, many: bool) -> Drawing:
    """Of one question: its words, pictures, scores and choices."""
    hue = HUES[index % len(HUES)]
    frames = form["frames"]
    drawing = Drawing(WIDTH, 0, "")
    y = 2.0  # for the frame around pictures
    if many:
        words = shortened(str(form.get("question") or "(no question)"), PLOT * 0.62, 13)
        drawing.add(Circle(9, 11, 8, hue, hue), Text(9, 15, str(index + 1), 11, PAPER, "middle"))
        drawing.add(Text(24, 15.5, words, 13, INK, bold=True))
        if form.get("answer"):
            said = shortened(str(form["answer"]), PLOT * 0.34, 12)
            drawing.add(Text(WIDTH - RIGHT, 15.5, said, 12, hue, "end"))
        y += 24
    pictured = [frame for frame in frames if frame.get("picture")]
    stems = y
    if pictured:
        y = _pictures(drawing, pictured, y, span, hue)
        stems = y - GAP / 2
    begin = y
    y = _scores(drawing, form, y, span, hue)
    for frame in frames:  # over scores, under marks
        x = _x(frame["second"], span)
        if pictured or y > begin:
            top = stems if pictured else begin
            drawing.add(Line([(x, top), (x, y + TRACK / 2)], hue, 0.9, opacity=0.55))
    y += _choices(drawing, form, y, span, hue)
    drawing.height = y + (18 if many else 4)
    return drawing


def _pictures(drawing: Drawing, frames: Sequence[Form], y: float, span: Span, hue: str) -> float:
    """Pictures of the frames with most tokens, as many as fit, each with a line to its time."""
    shapes = [size_of(frame) for frame in frames]
    wide = max(THUMB * width / height for width, height in shapes)
    wide = min(wide, THUMB * 2.4)
    most = max(int((PLOT + 6) / (wide + 6)), 1)
    ranked = sorted(frames, key=lambda f: (-f["tokens"], -(f.get("score") or 0), f["second"]))
    shown = sorted(ranked[:most], key=lambda f: f["second"])
    lefts = _apart([_x(f["second"], span) - wide / 2 for f in shown], wide + 6)
    for frame, left in zip(shown, lefts, strict=True):
        width, height = size_of(frame)
        scale = min(wide / width, THUMB / height)
        across, down = width * scale, height * scale
        x, at = left + (wide - across) / 2, _x(frame["second"], span)
        alt = f"Frame at {clock(frame['second'])}"
        small = smaller(picture_of(frame), round(2 * max(across, down)))
        drawing.add(Rect(x - 1.2, y + THUMB - down - 1.2, across + 2.4, down + 2.4, hue, 1.5))
        drawing.add(Image(x, y + THUMB - down, across, down, small, alt))
        middle = left + wide / 2
        foot = y + THUMB + GAP / 2
        drawing.add(Line([(middle, y + THUMB + 1), (at, foot)], hue, 0.9, opacity=0.55))
    return y + THUMB + GAP


def _scores(drawing: Drawing, form: Form, y: float, span: Span, hue: str) -> float:
    """A curve of the selector's scores, or of the queries' and a strip of each; where it ends."""
    times, queries, scores = form.get("times"), form.get("query_scores"), form.get("scores")
    if not times or len(times) < 2 or not (queries or scores):
        if len(form["frames"]) and form["frames_decoded"] > 1:
            name = str(form.get("selector") or "")
            drawing.add(Text(LEFT - 8, y + 12, name, 10, GREY, "end"))
            drawing.add(Line([(LEFT, y + 8), (LEFT + PLOT, y + 8)], FAINT))
        return y + 8
    if queries:
        table = np.asarray(queries, np.float64)
        curve = share_of_choices(table)
        told = ("share of", "choices")
        title = (
            "How often each frame is chosen by the queries' scores, highest "
            + number(100 * float(curve.max()))
            + " %"
        )
        curve = curve / max(float(curve.max()), 1e-12)
    else:
        curve = np.asarray(scores, np.float64)
        told, title = ("score", str(form.get("selector") or "")), "Scores of all frames, 0 to 1"
        low = min(float(curve.min()), 0.0)
        curve = (curve - low) / max(float(curve.max()) - low, 1.0 if low == 0 else 1e-12)
    points = _curve(curve, times, span)
    base = y + CURVE
    outline = [(x, base - value * (CURVE - 4)) for x, value in points]
    drawing.add(
        Area([(outline[0][0], base), *outline, (outline[-1][0], base)], hue, opacity=0.16,
             title=title),
        Line(outline, hue, 1.3),
        Line([(LEFT, base), (LEFT + PLOT, base)], FAINT),
        Text(LEFT - 8, y + 22, told[0], 10, GREY, "end"),
        Text(LEFT - 8, y + 34, told[1], 10, GREY, "end"),
    )  # fmt: skip
    if not queries:
        return base
    rows = len(table)
    high = min(max(6.0 * rows, 12.0), 64.0)
    image = strip(_binned(_levels(table), times, span))
    alt = f"Scores of each of {rows} queries, each from its lowest to its highest"
    drawing.add(
        Image(LEFT, base + 5, PLOT, high, image, alt, crisp=True),
        Text(LEFT - 8, base + 5 + high / 2 + 3.5, f"{rows} queries", 10, GREY, "end"),
    )
    return base + 5 + high


def _choices(drawing: Drawing, form: Form, y: float, span: Span, hue: str) -> float:
    """A mark for each chosen frame, as large as its tokens are many, joined with what it is mixed
    of; how high all of it is."""
    frames = form["frames"]
    middle = y + TRACK / 2 + 2
    most = max((frame["tokens"] for frame in frames), default=0) or 1
    times = form.get("times") or []
    drawing.add(
        Line([(LEFT, middle), (LEFT + PLOT, middle)], FAINT),
        Text(LEFT - 8, middle + 3.5, "chosen", 10, GREY, "end"),
    )
    for frame in frames:
        mixed = {int(i): w for i, w in frame["weights"].items()}
        if len(mixed) < 2 or not times:
            continue
        xs = {i: _x(times[i], span) for i in mixed}
        ends = [(min(xs.values()), middle), (max(xs.values()), middle)]
        drawing.add(Line(ends, hue, 2.2, opacity=0.5))
        for i, weight in mixed.items():
            reach = 7 * weight + 1
            title = f"{clock(times[i])}: weight {weight:.2f}"
            tick = [(xs[i], middle - reach), (xs[i], middle + reach)]
            drawing.add(Line(tick, hue, 1.6, title=title))
    for frame in frames:
        x = _x(frame["second"], span)
        radius = 1.4 + 5.2 * math.sqrt(frame["tokens"] / most)
        title = told(frame)
        if frame["tokens"] or frame.get("sampled") is None:
            drawing.add(
                Circle(x, middle, max(radius, 3 if frame["tokens"] else 4.5), hue, title=title)
            )
        else:
            drawing.add(Circle(x, middle, 2.6, PAPER, hue, title=title))
    return TRACK + 4


def told(frame: Form) -> str:
    """A chosen frame in words."""
    words = ", ".join(filter(None, (clock(frame["second"]), tokens_told(frame))))
    if frame["choices"] != 1:
        words += f", chosen {number(frame['choices'])} times"
    if frame.get("score") is not None:
        words += f", score {frame['score']:.2f}"
    return words


def tokens_told(frame: Form) -> str:
    sampled = frame.get("sampled")
    if sampled is None and not frame["tokens"]:
        return ""  # frames alone were chosen
    of = f" of {sampled}" if sampled and sampled != frame["tokens"] else ""
    return f"{frame['tokens']}{of} token" + "s" * (frame["tokens"] != 1 or bool(of))


def share_of_choices(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K, T) -> (T,) of how often a query chooses each frame, softmax(scores), the mean."""
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: npt.NDArray[np.float64] = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    return found


def _levels(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = (scores - low) / np.maximum(high - low, 1e-9)
    return found


def _binned(rows: npt.NDArray[Any], times: Sequence[float], span: Span) -> npt.NDArray[Any]:
    """(K, T) -> (K, n) over the axis of time: each column is of the frame shown then, and of
    several the largest."""
    count = min(COLUMNS, max(int(PLOT // 2), 1))
    begin, end = span
    share = (np.asarray(times) - begin) / (end - begin)
    at = np.clip((share * count).astype(int), 0, count - 1)
    edges = begin + (np.arange(count) + 0.5) / count * (end - begin)
    shown = np.maximum(np.searchsorted(np.asarray(times), edges, side="right") - 1, 0)
    out = rows[:, shown].copy()
    np.maximum.at(out.T, at, rows.T)
    return out


def _curve(
    values: npt.NDArray[np.float64], times: Sequence[float], span: Span
) -> list[tuple[float, float]]:
    """Points of the curve, no more than two a pixel: the lowest and the highest."""
    xs = [_x(second, span) for second in times]
    if len(xs) <= PLOT:
        return list(zip(xs, values.tolist(), strict=True))
    points: list[tuple[float, float]] = []
    columns = np.asarray(xs).astype(int)
    for column in np.unique(columns):
        own = values[columns == column]
        low, high = own.argmin(), own.argmax()
        for i in sorted({int(low), int(high)}):
            points.append((float(column) + i / max(len(own), 1), float(own[i])))
    return points


def _axis(drawing: Drawing, y: float, span: Span) -> None:
    begin, end = span
    length = end - begin
    step = next((step for step in STEPS if length / step <= 10), length / 8)
    drawing.add(Line([(LEFT, y), (LEFT + PLOT, y)], GREY))
    for i in range(math.ceil(begin / step - 1e-9), int(end / step + 1e-9) + 1):
        x = _x(i * step, span)
        told = clock(i * step)
        drawing.add(Line([(x, 0), (x, y)], FAINT, 0.6, opacity=0.7))
        drawing.add(Line([(x, y), (x, y + 4)], GREY))
        edge = x > WIDTH - 4 * len(told)  # where half of it would stand outside
        at, anchor = (WIDTH, "end") if edge else (x, "middle")
        drawing.add(Text(at, y + 17, told, 10.5, GREY, anchor))


def _apart(lefts: Sequence[float], pitch: float) -> list[float]:
    """Where pictures begin, as near as may be to where they want to, none over another."""
    low, high = LEFT, LEFT + PLOT + 6 - pitch
    found: list[float] = []
    for left in lefts:
        found.append(max(left, low, found[-1] + pitch if found else low))
    limit = high
    for i in reversed(range(len(found))):
        found[i] = min(found[i], limit)
        limit = found[i] - pitch
    return found


def _x(second: float, span: Span) -> float:
    begin, end = span
    return LEFT + PLOT * min(max((second - begin) / (end - begin), 0.0), 1.0)


def _span(forms: Sequence[Form]) -> Span:
    """From the start of the video, or of the part that was read where that is far from it, to the
    end of the last frame."""
    begins, ends = [], []
    for form in forms:
        times = form.get("times") or [frame["second"] for frame in form["frames"]] or [0.0]
        first, last = min(times), max(times)
        begins.append(first)
        ends.append(last + ((last - first) / (len(times) - 1) if len(times) > 1 else 1.0))
    begin, end = float(min(begins)), float(max(ends))
    begin = begin if begin > end / 4 else 0.0
    return begin, max(end, begin + 1e-3)
