"""Provenance as plain data: what an answer was given from, and how long each stage took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from bvllm_adapters.features import VisualTokens


@dataclass(frozen=True)
class FrameTrace:
    """One chosen frame, or several near-equal ones that became one.

    Args:
        frame: index of the main one among the frames read. second: its time in the video.
        weights: frame index -> weight, summing to 1; left out below 0.001.
        choices: of the selector that fell on it. tokens: that it got.
        score: that it was chosen by, from 0 to 1, by a selector without training; else None.
    """

    frame: int
    second: float
    weights: dict[int, float]
    choices: float
    tokens: int
    score: float | None = None


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

    @classmethod
    def of(
        cls,
        tokens: VisualTokens,
        *,
        max_tokens: int | None,
        seconds: dict[str, float],
        tower_passes: int | None = None,
        scout_passes: int | None = None,
        selector: str | None = None,
    ) -> Trace:
        selection = tokens.selection
        scores = selection.scores
        counts = torch.bincount(tokens.slot, minlength=len(selection)).tolist()
        mixed = None if selection.is_whole else selection.weights
        frames = []
        for row, (frame, choices, count) in enumerate(
            zip(selection.frame.tolist(), selection.size.tolist(), counts, strict=True)
        ):
            weights = {frame: 1.0}
            if mixed is not None:
                shown = (mixed[row] >= 1e-3).nonzero().squeeze(1).tolist()
                weights = {i: float(mixed[row, i]) for i in shown}
            frames.append(
                FrameTrace(
                    frame=frame,
                    second=float(tokens.seconds[frame]),
                    weights=weights,
                    choices=choices,
                    tokens=count,
                    score=None if scores is None else float(scores[frame]),
                )
            )
        return cls(
            frames_decoded=selection.num_frames,
            frames=tuple(frames),
            num_tokens=len(tokens) + tokens.beside,
            max_tokens=max_tokens,
            seconds=dict(seconds),
            tower_passes=tower_passes,
            scout_passes=scout_passes,
            selector=selector,
            note=selection.note,
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts and lists, ready for JSON."""
        return asdict(self)

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
