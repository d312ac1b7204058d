"""Provenance as plain data: what an answer was given from, and how long each stage took.

Its JSON form, which `to_dict` gives, `from_dict` reads and `report` shows, is one object:

    format          "bvllm-trace/1"; fields may come in one number, none goes or changes
    question        text, or null; answer: likewise; source: what was read, as it was named
    frames_decoded  T, frames read from the source
    times           [T] seconds
    scores          [T] what a selector without training chose by, 0 to 1; or null
    query_scores    [K][T] what each query of a learned selector chose by; or null
    frames          [M] the chosen ones in time order, each an object:
        frame, second   index of T (the main one of several that became one), and its time
        weights         {index of T: weight}, which sum to 1, those below 0.001 left out
        choices         of the selector that fell on it; score: that it was chosen by, or null
        sampled         tokens made of it; tokens: of these after merging
        picture         a small JPEG file in base64, or null
        members         [sampled] which of its tokens each is in, null where it got none; or null
        looked          [sampled][P] shares of where each looked among the patches; or null
    num_tokens      visual tokens given to the language model; max_tokens: the budget, or null
    grid            [rows, columns] in which patches lie (those of `looked`, without a sampler those
                    of `members`), row after row; or null: they lie in no grid that is known
    box             [left, top, right, bottom] of that grid, as shares of the picture; null: all
    seconds         {stage: seconds}; bytes: {stage: peak bytes}, or null where not asked for
    tokens_after    {stage: visual tokens of all chosen frames that are left behind it}
    tower_passes, scout_passes, selector, note    see `Trace`
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bvllm_adapters.features import VisualTokens
from bvllm_adapters.report import page, picture
from bvllm_adapters.weights.whole import aside

FORMAT = "bvllm-trace/1"
Numbers = npt.NDArray[np.floating[Any]]
Later = Callable[[Iterable[int]], dict[int, Any]]
"""Frame indices -> a small JPEG file of each that is still to be had."""


@dataclass(frozen=True)
class FrameTrace:
    """One chosen frame, or several near-equal ones that became one.

    Args:
        frame: index of the main one among the frames read. second: its time in the video.
        weights: frame index -> weight, summing to 1; left out below 0.001.
        choices: of the selector that fell on it. tokens: that it got.
        score: that it was chosen by, from 0 to 1, by a selector without training; else None.
        sampled: tokens that were made of it, before merging.
        picture: a small JPEG file, with `look`.
        members: of each token made of it, with `look`: which of its tokens it is in.
        looked: (sampled, P) where each of them looked, with `look` and a sampler.
    """

    frame: int
    second: float
    weights: dict[int, float]
    choices: float
    tokens: int
    score: float | None = None
    sampled: int | None = None
    picture: bytes | None = field(default=None, compare=False, repr=False)
    members: tuple[int | None, ...] | None = field(default=None, compare=False, repr=False)
    looked: Numbers | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Trace:
    """Where an answer's visual tokens come from.

    Args:
        frames_decoded: frames read from the source. frames: the chosen ones, in time order.
        num_tokens: visual tokens given to the language model. max_tokens: the budget, or None.
        seconds: stage -> seconds that it took; decoding and preprocessing run beside the tower, so
            that the sum may exceed the time that went by. Of a batch of questions, that of all.
        tower_passes: frames of this video that went through the vision tower up to now, those seen
            again included; None where it is not known.
        scout_passes: frames that a scout, or the selector itself, has looked at up to now.
        selector: what chose the frames, as the config names it.
        note: what the selector has to say, such as of a question that it could not read at once.
        question, answer, source: what was asked, said and read.
        times: (T,) seconds of all frames. scores: (T,) what a selector without training chose by.
        query_scores: (K, T) what each query of a learned selector chose by.
        bytes: stage -> peak bytes, with `look`. tokens_after: stage -> tokens left behind it.
        grid: rows and columns of patches, with `look`. box: the part of the picture they are of.
        pictures_later: gives pictures of frames of a file; is not saved.

    Where a tower takes several frames as one, as Qwen-VL's takes pairs, all this is of these.
    """

    frames_decoded: int
    frames: tuple[FrameTrace, ...]
    num_tokens: int
    max_tokens: int | None
    seconds: dict[str, float]
    tower_passes: int | None = None
    scout_passes: int | None = None
    selector: str | None = None
    note: str | None = None
    question: str | None = field(default=None, compare=False, repr=False)
    answer: str | None = field(default=None, compare=False, repr=False)
    source: str | None = field(default=None, compare=False, repr=False)
    times: Numbers | None = field(default=None, compare=False, repr=False)
    scores: Numbers | None = field(default=None, compare=False, repr=False)
    query_scores: Numbers | None = field(default=None, compare=False, repr=False)
    bytes: dict[str, int] | None = field(default=None, compare=False, repr=False)
    tokens_after: dict[str, int] | None = field(default=None, compare=False, repr=False)
    grid: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    box: tuple[float, float, float, float] | None = field(default=None, compare=False, repr=False)
    pictures_later: Later | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        tokens: VisualTokens,
        *,
        max_tokens: int | None,
        seconds: dict[str, float],
        pictures: Mapping[int, Any] | None = None,
        **more: Any,
    ) -> Trace:
        """Of one visual input.

        Args:
            pictures: frame index -> a small JPEG file. more: other fields as they are.
        """
        selection = tokens.selection
        scores = selection.scores
        rows = len(selection)
        counts = torch.bincount(tokens.slot, minlength=rows).tolist()
        held = tokens.size.new_zeros(rows).index_add(0, tokens.slot, tokens.size).tolist()
        sampled = round(max(held, default=0))
        mixed = None if selection.is_whole else selection.weights
        frames = []
        begin = 0
        for row, (frame, choices, count) in enumerate(
            zip(selection.frame.tolist(), selection.size.tolist(), counts, strict=True)
        ):
            weights = {frame: 1.0}
            if mixed is not None:
                shown = (mixed[row] >= 1e-3).nonzero().squeeze(1).tolist()
                weights = {i: float(mixed[row, i]) for i in shown}
            members = None
            if tokens.members is not None:
                at = (tokens.members[row] - begin).tolist()
                members = tuple(i if count else None for i in at)
            frames.append(
                FrameTrace(
                    frame=frame,
                    second=float(tokens.seconds[frame]),
                    weights=weights,
                    choices=choices,
                    tokens=count,
                    score=None if scores is None else float(scores[frame]),
                    sampled=sampled,
                    picture=(pictures or {}).get(frame),
                    members=members,
                    looked=None if tokens.looked is None else _numbers(tokens.looked[row]),
                )
            )
            begin += count
        return cls(
            frames_decoded=selection.num_frames,
            frames=tuple(frames),
            num_tokens=len(tokens) + tokens.beside,
            max_tokens=max_tokens,
            seconds=dict(seconds),
            note=selection.note,
            times=_numbers(tokens.seconds),
            scores=_numbers(scores),
            query_scores=_numbers(selection.query_scores),
            tokens_after={"sampler": rows * sampled, "budget": len(tokens)},
            **more,
        )

    def with_pictures(self) -> Trace:
        """The same with pictures of the chosen frames, where the video is in a file that is as it
        was when it was read."""
        if self.pictures_later is None or any(frame.picture for frame in self.frames):
            return self
        found = self.pictures_later(frame.frame for frame in self.frames)
        frames = (replace(frame, picture=found.get(frame.frame)) for frame in self.frames)
        return replace(self, frames=tuple(frames))

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts and lists, ready for JSON; see the module for its form."""
        plain = {name: _plain(getattr(self, name)) for name in _TRACE}
        frames = [{name: _plain(getattr(f, name)) for name in _FRAME} for f in self.frames]
        return {"format": FORMAT, **plain, "frames": frames}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Trace:
        """What `to_dict` gave, also after JSON.

        Raises:
            ValueError: for another format, or a field that is missing.
        """
        if not isinstance(form, Mapping) or form.get("format") != FORMAT:
            got = form.get("format") if isinstance(form, Mapping) else type(form).__name__
            raise ValueError(f"format: got {got!r}, wanted {FORMAT!r}")
        frames = []
        for each in _field(form, "frames"):
            found = {name: each.get(name) for name in _FRAME}
            found["weights"] = {int(i): w for i, w in _field(each, "weights").items()}
            found["picture"] = None if found["picture"] is None else b64decode(found["picture"])
            found["members"] = None if found["members"] is None else tuple(found["members"])
            found["looked"] = _array(found["looked"], np.float32)
            frames.append(FrameTrace(**found))
        found = {name: form.get(name) for name in _TRACE}
        found["frames"] = tuple(frames)
        found["times"] = _array(found["times"], np.float64)
        for name in ("scores", "query_scores"):
            found[name] = _array(found[name], np.float32)
        for name in ("grid", "box"):
            found[name] = None if found[name] is None else tuple(found[name])
        for name in ("frames_decoded", "num_tokens", "seconds"):
            _field(form, name)
        return cls(**found)

    def save(self, file: str | Path, *, beside: Sequence[Trace] = ()) -> None:
        """Write a report: one file that needs no other, over what it held before; whole or not at
        all.

        Args:
            file: its suffix says what it is: .html, a page to look at and print; .png, a picture
                of the same; .json, see the module (of several traces a list of such).
            beside: traces of other questions, to be shown beside this one.

        Raises:
            ValueError: for another suffix, a folder, or a file in a folder that is not there.
        """
        save([self, *beside], file)

    def _repr_html_(self) -> str:
        """In a notebook."""
        return page.fragment([self.with_pictures().to_dict()])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"pictures_later": None}

    def __str__(self) -> str:
        """A table: the chosen frames with their times and tokens, the total, the seconds."""
        seen = "" if self.tower_passes is None else f", {self.tower_passes} through the tower"
        if self.scout_passes is not None:
            seen += f", {self.scout_passes} glanced at"
        by = "" if self.selector in (None, "learned") else f" by {self.selector}"
        scored = any(frame.score is not None for frame in self.frames)
        lines = [
            f"frames    {self.frames_decoded} decoded, {len(self.frames)} chosen{by}{seen}",
            "          frame   second  choices  tokens" + "   score" * scored,
        ]
        lines += [
            f"{frame.frame:>15}{frame.second:>9.2f}{frame.choices:>9.3g}{frame.tokens:>8}"
            + ("" if frame.score is None else f"{frame.score:>8.2f}")
            for frame in self.frames
        ]
        budget = "no limit" if self.max_tokens is None else f"a budget of {self.max_tokens}"
        lines.append(f"tokens    {self.num_tokens} visual tokens of {budget}")
        if self.note is not None:
            lines.append(f"note      {self.note}")
        lines.append("seconds   " + ", ".join(f"{k} {v:.3f}" for k, v in self.seconds.items()))
        return "\n".join(lines)


_FRAME = [each.name for each in fields(FrameTrace)]
_TRACE = [each.name for each in fields(Trace) if each.name != "pictures_later"]
SUFFIXES = (".html", ".png", ".json")


def check_file(file: str | Path) -> Path:
    """ValueError unless a report may be saved there."""
    file = Path(file)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"file: got {file}, wanted one that ends in {', '.join(SUFFIXES)}")
    if file.is_dir():
        raise ValueError(f"file: got {file}, which is a folder, wanted a file")
    if not file.parent.is_dir():
        raise ValueError(f"file: got {file}, wanted a file in a folder that is there")
    return file


def save(traces: Sequence[Trace], file: str | Path) -> None:
    """`Trace.save` of one or several, all of which are shown beside each other."""
    file = check_file(file)
    if not traces:
        raise ValueError("traces: got none, wanted one or more")
    forms = [trace.with_pictures().to_dict() for trace in traces]
    if file.suffix.lower() == ".json":
        made = json.dumps(forms[0] if len(forms) == 1 else forms).encode()
    elif file.suffix.lower() == ".png":
        made = picture.png(forms)
    else:
        made = page.page(forms).encode("utf-8", "replace")
    with aside(file) as new:
        new.write_bytes(made)


def _numbers(values: Tensor | None) -> Numbers | None:
    """A copy of its own, on the CPU."""
    if values is None:
        return None
    exact = torch.promote_types(values.dtype, torch.float32)  # numpy has no bfloat16
    return np.array(values.detach().to("cpu", exact).numpy())


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):  # six digits behind the point tell any two float32 apart
        return value.astype(np.float64).round(6).tolist()
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {**value}
    return [*value] if isinstance(value, tuple) else value


def _array(values: Any, dtype: Any) -> Numbers | None:
    return None if values is None else np.array(values, dtype)


def _field(form: Mapping[str, Any], name: str) -> Any:
    if form.get(name) is None:
        raise ValueError(f"{name}: got none, wanted it, as every trace has it")
    return form[name]
