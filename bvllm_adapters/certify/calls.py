"""Calls of a host's own forward() and generate(), as its users' scripts make them.

Axes: B prompts, L ids of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bvllm_adapters.certify.report import NotApplicable
from bvllm_adapters.hosts.host import Host
from bvllm_adapters.question import IGNORED_LABEL
from bvllm_adapters.training.chat import tokenized
from bvllm_adapters.training.conversations import Medium, Row
from bvllm_adapters.training.host import Example, HostTraining, Visual, training_of
from bvllm_adapters.training.samples import Collate
from bvllm_adapters.video.frames import Video

Side = Literal["left", "right"]
_NOT_OF_FORWARD = ("questions", "seeds", "skipped", "drawn")


def own_call(
    host: Host,
    model: Any,
    processor: Any,
    videos: Sequence[Video | None],
    questions: Sequence[str],
    *,
    answers: Sequence[str] | None = None,
    padding_side: Side = "left",
    to: Literal["forward", "generate"] = "forward",
) -> dict[str, Any]:
    """The arguments of one call, as the host's `call` or its `training` makes them.

    Raises:
        NotApplicable: the host says how in neither way, or that its models do not take this.
    """
    device = model.get_input_embeddings().weight.device
    how: Any = getattr(host, "call", None)
    if how is not None:

        def of_host(answers: Sequence[str] | None) -> dict[str, Any]:
            return dict(
                how(
                    model, processor, videos, questions,
                    answers=answers, padding_side=padding_side, to=to,
                )
            )  # fmt: skip

        try:
            made = of_host(answers)
            if answers is not None:
                made["labels"] = labels_behind(of_host(None), made)
        except NotImplementedError as reason:
            raise NotApplicable(str(reason) or "its `call` does not say how") from reason
    elif hasattr(host, "training"):
        training = training_of(host, processor, model)
        made = by_training(training, videos, questions, answers, padding_side)
        if to == "generate":
            made.pop("labels", None)
    else:
        raise NotApplicable("the host has neither `call` nor `training`, see hosts/host.py")
    return {name: _moved(value, device) for name, value in made.items()}


def labels_behind(prompts: dict[str, Any], answered: dict[str, Any]) -> Tensor:
    """(B, L) labels of prompts with answers: -100 at prompts and padding."""
    ids: Tensor = answered["input_ids"]
    words = answered.get("attention_mask", torch.ones_like(ids)).bool()
    asked = prompts.get("attention_mask", torch.ones_like(prompts["input_ids"])).sum(dim=1)
    behind = words & (words.cumsum(dim=1) > asked[:, None])
    return ids.masked_fill(~behind, IGNORED_LABEL)


def by_training(
    training: HostTraining,
    videos: Sequence[Video | None],
    questions: Sequence[str],
    answers: Sequence[str] | None,
    padding_side: Side,
) -> dict[str, Any]:
    """What a batch of training rows is, without answers too, and padded on either side."""
    none: list[str | None] = [None] * len(questions)
    rows = zip(videos, questions, none if answers is None else answers, strict=True)
    examples = [_example(training, *row) for row in rows]
    made = {k: v for k, v in Collate(training)(examples).items() if k not in _NOT_OF_FORWARD}
    if answers is None:
        del made["labels"]
    if padding_side == "left":
        shift = (made["attention_mask"] == 0).sum(dim=1)
        made |= {name: _rolled(made[name], shift) for name in _OF_IDS & made.keys()}
    return made


_OF_IDS = {"input_ids", "attention_mask", "labels"}


def _example(
    training: HostTraining, video: Video | None, question: str, answer: str | None
) -> Example:
    visuals: tuple[Visual, ...] = ()
    media: tuple[Medium, ...] = ()
    if video is not None:
        kind: Any = "image" if video.is_image else "video"
        seconds = torch.from_numpy(video.seconds)
        visuals, media = (Visual(kind, training.pixels(video), seconds),), (Medium(kind, Path()),)
    turn = "".join(f"{medium.tag}\n" for medium in media) + question
    if answer is not None:
        ids, labels = tokenized(Row("certify", (turn, answer), media), training, 2**20)
    else:
        ids = torch.tensor(training.ids(training.prompt([turn])))
        labels = torch.full_like(ids, IGNORED_LABEL)
    return Example("certify", question, ids, labels, visuals, (0,) * len(visuals))


def _rolled(rows: Tensor, shift: Tensor) -> Tensor:
    """(B, L), each row moved to the right, so that the padding behind it comes before it."""
    moved = [row.roll(by) for row, by in zip(rows, shift.tolist(), strict=True)]
    return torch.stack(moved)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_moved(each, device) for each in value)
    return value
