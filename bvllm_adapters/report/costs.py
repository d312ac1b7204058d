"""The ledger: what each stage took, and what was left behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bvllm_adapters.report.drawing import FAINT, GREY, INK, Drawing, Line, Rect, Text

Form = Mapping[str, Any]
STAGES = {
    "decode": "reading frames",
    "preprocess": "frames to pixels",
    "scout": "a cheap look at all frames",
    "tower": "vision encoder",
    "selector": "choosing frames",
    "merge": "merging equal choices",
    "sampler": "tokens of each frame",
    "budget": "merging tokens to the budget",
    "projection": "to the language model's width",
    "prefill": "reading the prompt",
    "generate": "writing the answer",
}


class Cost(NamedTuple):
    """A line of the ledger; None: not known."""

    stage: str
    what: str
    seconds: float | None
    bytes: int | None
    left: str


def costs(form: Form) -> list[Cost]:
    """In the order of the pipeline, stages that are known of no more than seconds behind them."""
    seconds, peaks = form.get("seconds") or {}, form.get("bytes") or {}
    left = left_behind(form)
    names = [name for name in STAGES if name in seconds or name in left or name in peaks]
    names += [name for name in {**seconds, **peaks} if name not in STAGES]
    return [
        Cost(name, STAGES.get(name, ""), seconds.get(name), peaks.get(name), left.get(name, ""))
        for name in names
    ]


def left_behind(form: Form) -> dict[str, str]:
    """What there is behind a stage, in words."""
    frames = form["frames"]
    after = form.get("tokens_after") or {}
    found = {"decode": _count(form["frames_decoded"], "frame")}
    if form.get("scout_passes") is not None:
        found["scout"] = _count(form["scout_passes"], "frame") + " seen"
    if form.get("tower_passes") is not None:
        found["tower"] = _count(form["tower_passes"], "frame") + " seen"
    choices = sum(frame["choices"] for frame in frames)
    if form.get("selector") == "learned":
        found["selector"] = _count(round(choices), "choice")
        found["merge"] = _count(len(frames), "different frame")
    else:
        found["selector"] = _count(len(frames), "frame")
    if "sampler" in after:
        found["sampler"] = _count(after["sampler"], "token")
    if "budget" in after:
        found["budget"] = _count(after["budget"], "token")
    if form["num_tokens"]:
        found["prefill"] = _count(form["num_tokens"], "visual token")
    return {name: words for name, words in found.items() if name in (form.get("seconds") or {})}


def size(count: int) -> str:
    """12345678 -> "11.8 MiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def spent(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1000 * seconds:.2f} ms"


def budget_told(form: Form) -> str:
    """One line: how many tokens of how many, and of how many frames."""
    tokens, most = form["num_tokens"], form.get("max_tokens")
    chosen, read = len(form["frames"]), form["frames_decoded"]
    words = f"{chosen} of {_count(read, 'frame')} chosen"
    if form.get("selector"):
        words += (
            " by the learned selector"
            if form["selector"] == "learned"
            else (f" by {form['selector']}")
        )
    if not tokens:
        return words
    sampled = (form.get("tokens_after") or {}).get("sampler")
    of = f"{sampled:,} tokens merged to " if sampled and sampled > tokens else ""
    limit = "no limit" if most is None else f"a budget of {most:,}"
    return f"{words} · {of}{tokens:,} visual tokens of {limit}"


def ledger(form: Form, hue: str, width: float) -> Drawing:
    """The lines of the ledger, with a bar for each stage's seconds; what a stage does is told where
    there is room."""
    lines = costs(form)
    drawing = Drawing(width, 16.0 * len(lines) + 26, "Seconds of each stage")
    longest = max((each.seconds or 0 for each in lines), default=0) or 1
    roomy = width > 700
    peaks = any(each.bytes is not None for each in lines)
    time, peak = (330.0, width - 190) if roomy else (132.0, width - 122)
    bar = peak - 75 * peaks - time - 8 - 30 * (not peaks)
    drawing.add(Text(0, 12, "stage", 10, GREY), Text(time, 12, "time", 10, GREY, "end"))
    if peaks:
        drawing.add(Text(peak, 12, "peak memory", 10, GREY, "end"))
    drawing.add(Text(width, 12, "left behind it", 10, GREY, "end"))
    drawing.add(Line([(0, 17), (width, 17)], FAINT))
    for i, each in enumerate(lines):
        y = 31 + 16.0 * i
        drawing.add(Text(0, y, each.stage, 11, INK))
        if roomy:
            drawing.add(Text(82, y, each.what, 10.5, GREY))
        if each.seconds is not None:
            drawing.add(Text(time, y, spent(each.seconds), 11, INK, "end"))
            drawing.add(Rect(time + 8, y - 8, max(bar * each.seconds / longest, 0.8), 8, hue))
        if each.bytes is not None:
            drawing.add(Text(peak, y, size(each.bytes), 11, INK, "end"))
        drawing.add(Text(width, y, each.left, 11, INK, "end"))
    return drawing


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)
