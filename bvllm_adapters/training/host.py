"""What a host says about training: its chat format, its pixels, its forward()'s arguments.

Axes: B rows of a batch, L ids of the longest, T frames of one medium, S image size in pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from bvllm_adapters.training.conversations import Kind
from bvllm_adapters.video.frames import Video


@dataclass(frozen=True, eq=False)
class Visual:
    """One image or video as the tower takes it: (T, 3, S, S) pixels, (T,) seconds, and what a host
    whose prompts depend on it wants to know again of its size."""

    kind: Kind
    pixels: Tensor
    seconds: Tensor
    layout: Any = None


@dataclass(frozen=True, eq=False)
class Expanded:
    """A prompt with a place for each visual token.

    Args:
        ids: its L ids. of_ids: what forward() takes beside them, (L,) each. beside: what it takes
            beside pixels.
    """

    ids: list[int]
    of_ids: Mapping[str, Tensor] = field(default_factory=dict)
    beside: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Example:
    """One row, ready to be put into a batch.

    Args:
        name: of the row, for messages. question: what the Q-Formers read.
        input_ids: (L,) int64 with a placeholder for each visual. labels: (L,), -100 but at answers.
        seeds: of the noise with which frames are chosen, one for each visual.
        of_ids, beside: see `Expanded`.
    """

    name: str
    question: str
    input_ids: Tensor
    labels: Tensor
    visuals: tuple[Visual, ...] = ()
    seeds: tuple[int, ...] = ()
    of_ids: Mapping[str, Tensor] = field(default_factory=dict)
    beside: Mapping[str, Tensor] = field(default_factory=dict)


class HostTraining(Protocol):
    """Given by a host's `training(processor)` or, where settings of the wrapped model are needed,
    `training(processor, model)`. DataLoader workers get a copy each, so it holds no model and can
    be pickled.

    A host whose prompts have a place for each visual token has `expanded(prompt, visuals) ->
    Expanded` too: the ids of a prompt of which `ids` gives one placeholder a medium, with those of
    all its media (the first of `visuals`, as many as the prompt has). One to whose tower frames
    are more than (T, 3, S, S) pixels has `visual(kind, video) -> Visual` in place of `pixels`.
    """

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


def training_of(host: Any, processor: Any, model: Any) -> HostTraining:
    """That of a host, which may want to know of the wrapped model."""
    needed = {"model": model} if "model" in inspect.signature(host.training).parameters else {}
    made: HostTraining = host.training(processor, **needed)
    return made
