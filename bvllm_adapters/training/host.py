"""What a host says about training: its chat format, its pixels, its forward()'s arguments.

Axes: B rows of a batch, L ids of the longest, T frames of one medium, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from bvllm_adapters.training.conversations import Kind
from bvllm_adapters.video.frames import Video


@dataclass(frozen=True, eq=False)
class Visual:
    """One image or video as the tower takes it: (T, 3, S, S) pixels, (T,) seconds."""

    kind: Kind
    pixels: Tensor
    seconds: Tensor


@dataclass(frozen=True, eq=False)
class Example:
    """One row, ready to be put into a batch.

    Args:
        name: of the row, for messages. question: what the Q-Formers read.
        input_ids: (L,) int64 with a placeholder for each visual. labels: (L,), -100 but at answers.
        seeds: of the noise with which frames are chosen, one for each visual.
    """

    name: str
    question: str
    input_ids: Tensor
    labels: Tensor
    visuals: tuple[Visual, ...] = ()
    seeds: tuple[int, ...] = ()


class HostTraining(Protocol):
    """Given by a host's `training(processor)`. DataLoader workers get a copy each, so it holds no
    model and can be pickled."""

    pad_token_id: int
    placeholders: Collection[int]
    """Ids that stand for an image or a video."""
    max_media: int | None
    """Images and videos that one prompt may hold; None: any number."""
    end_ids: Collection[int]
    """Ids that end an answer, or anything else of the chat format."""

    def prompt(self, turns: Sequence[str], *, system: str | None = None) -> str:
        """A conversation as the host's own prompts have it.

        Args:
            turns: of human and model, in turn; tags are "<image>" and "<video>". An odd number
                ends where the next answer begins.
            system: what stands before them, in place of what the format says itself; only given
                for rows that have it.
        """

    def ids(self, prompt: str) -> list[int]:
        """Its ids, with a placeholder for each tag."""

    def pixels(self, video: Video) -> Tensor:
        """(T, 3, S, S), of an image (1, 3, S, S)."""

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        """What forward() takes besides input_ids, attention_mask and labels.

        The question need not be said to a model that asks `bvllm_adapters.question.asked`.
        """
