"""The contact sheet: each chosen frame with its time and tokens, and where they looked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bvllm_adapters.report.drawing import (
    FAINT,
    GREY,
    INK,
    Drawing,
    Image,
    Rect,
    Text,
    clock,
    number,
)
from bvllm_adapters.report.overlay import (
    heat,
    heat_over,
    mosaic_over,
    picture_of,
    size_of,
    smaller,
    strongest,
    token_heat,
)
from bvllm_adapters.report.timeline import tokens_told, told

Form = Mapping[str, Any]
NARROW, WIDE, HIGH = 146.0, 184.0, 146.0
SMALL = 64.0
MOST_MAPS = 160  # of single tokens in one report


def cards(form: Form, hue: str) -> list[Drawing]:
    """One for each chosen frame, in time order, all as wide as their pictures want to be."""
    frames = form["frames"]
    most = strongest(frames)
    largest = max((frame["tokens"] for frame in frames), default=0) or 1
    shapes = [size_of(frame) for frame in frames if frame.get("picture")]
    wide = min(max((HIGH * w / h for w, h in shapes), default=0.0), WIDE)
    wide = max(wide, NARROW)
    high = min(HIGH, max((wide * h / w for w, h in shapes), default=0.0))
    return [card(form, frame, hue, most, largest, (wide, high)) for frame in frames]


def card(
    form: Form,
    frame: Form,
    hue: str,
    most: float,
    largest: int,
    place: tuple[float, float],
) -> Drawing:
    """One chosen frame: picture, time, what its tokens see, how many they are.

    Args:
        most: what heat is scaled by. largest: tokens of the frame that has most. place: the width
            and height that pictures have.
    """
    wide, high = place
    drawing = Drawing(wide, 0, f"Chosen frame at {told(frame)}")
    time = clock(frame["second"])
    looks = None
    if high:
        drawing.add(Rect(0, 0, wide, high, FAINT))
    if frame.get("picture"):
        x, y, across, down = _fitted(frame, place)
        drawing.add(Image(x, y, across, down, picture_of(frame), f"Frame at {time}"))
        looks = look_over(form, frame, most)
    elif high:
        drawing.add(Text(wide / 2, high / 2 + 6, time, 17, GREY, "middle", bold=True))
    foot = high
    if looks is not None:
        data, words = looks
        foot += high + 3
        drawing.add(Rect(0, high + 3, wide, high, FAINT))
        drawing.add(Image(x, high + 3 + y, across, down, data, words))
    if tokens_told(frame):
        drawing.add(Rect(0, foot + 4, wide, 3, FAINT))
        drawing.add(Rect(0, foot + 4, wide * frame["tokens"] / largest, 3, hue))
    drawing.add(Text(0, foot + 22, time, 12.5, INK, bold=True))
    drawing.add(Text(wide, foot + 22, tokens_told(frame), 11.5, INK, "end"))
    drawing.add(Text(0, foot + 36, _more(frame), 10.5, GREY, title=_mixed(frame)))
    drawing.height = foot + 41
    return drawing


def look_over(form: Form, frame: Form, most: float) -> tuple[bytes, str] | None:
    """Where a frame's tokens looked, or which of its patches became one, and that in words."""
    grid, time = form.get("grid"), clock(frame["second"])
    if not grid or not frame.get("picture"):
        return None
    values = heat(frame)
    if values is not None and len(values) == grid[0] * grid[1]:
        picture = heat_over(picture_of(frame), values, most, grid, form.get("box"))
        peak = f"{float(values.max()):.1f} times as much as evenly at most"
        return picture, f"Where the tokens of the frame at {time} looked: {peak}"
    members = frame.get("members")
    if values is None and members and len(members) == grid[0] * grid[1]:
        picture = mosaic_over(picture_of(frame), members, grid, form.get("box"))
        return picture, f"The frame at {time} as its {frame['tokens']} merged tokens see it"
    return None


def token_maps(form: Form, budget: int = MOST_MAPS) -> list[tuple[str, list[Drawing]]]:
    """Of each frame, where each of its tokens looked; no more of them than `budget`."""
    grid, found = form.get("grid"), []
    for frame in form["frames"]:
        if not grid or not frame.get("picture") or frame["tokens"] > budget:
            continue
        own = []
        maps = [token_heat(frame, token) for token in range(frame["tokens"])]
        there = [values for values in maps if values is not None]
        most = max([2.0, *(float(values.max()) for values in there)])
        width, height = size_of(frame)
        scale = SMALL / max(width, height)
        small = smaller(picture_of(frame), round(2 * SMALL))
        for token, values in enumerate(maps):
            if values is None or len(values) != grid[0] * grid[1]:
                continue
            held = (frame.get("members") or []).count(token)
            words = f"Token {token + 1} of the frame at {clock(frame['second'])}"
            words += f": {held} merged" if held > 1 else ""
            each = Drawing(SMALL + 2, height * scale + 14, words)
            data = heat_over(small, values, most, grid, form.get("box"))
            each.add(Image(0, 0, width * scale, height * scale, data, words))
            each.add(Text(0, height * scale + 11, f"{held} merged" if held > 1 else "one", 9, GREY))
            own.append(each)
        if own:
            budget -= len(own)
            found.append((clock(frame["second"]), own))
    return found


def legend(form: Form) -> str:
    """What the second picture of each card shows; empty: there is none."""
    frames, grid = form["frames"], form.get("grid")
    if not grid or not any(frame.get("picture") for frame in frames):
        return ""
    if any(frame.get("looked") for frame in frames):
        return (
            "Below each frame: where its tokens looked (cross-attention, mean of tokens, heads and "
            f"layers). Grey: evenly or less; brightest: {strongest(frames):.1f} times as much."
        )
    if any(frame.get("members") for frame in frames):
        return (
            "Below each frame: what is left of it. Patches that became one token are within one "
            "line and have their mean colour."
        )
    return ""


def sheet(form: Form, hue: str, width: float) -> Drawing:
    """All cards in rows of so many pixels."""
    made = cards(form, hue)
    wide = made[0].width + 12 if made else NARROW
    columns = max(int((width + 12) // wide), 1)
    drawing = Drawing(width, 0, "Chosen frames")
    for begin in range(0, len(made), columns):
        row = made[begin : begin + columns]
        for i, each in enumerate(row):
            drawing.put(each, i * wide, drawing.height)
        drawing.height += max(each.height for each in row) + 10
    return drawing


def _fitted(frame: Form, place: tuple[float, float]) -> tuple[float, float, float, float]:
    """Where a picture begins, and its width and height, within its place."""
    (width, height), (wide, high) = size_of(frame), place
    scale = min(wide / width, high / height)
    across, down = width * scale, height * scale
    return (wide - across) / 2, (high - down) / 2, across, down


def _more(frame: Form) -> str:
    words = [f"frame {frame['frame']}"]
    if len(frame["weights"]) > 1:
        words = [f"of {len(frame['weights'])} frames"]
    if frame["choices"] != 1:
        words.append(f"{number(frame['choices'])} choices")
    if frame.get("score") is not None:
        words.append(f"score {frame['score']:.2f}")
    return " · ".join(words)


def _mixed(frame: Form) -> str:
    if len(frame["weights"]) < 2:
        return ""
    return ", ".join(f"frame {i}: {weight:.2f}" for i, weight in frame["weights"].items())
