"""What a request of lmms-eval shows and asks, whichever way a task puts it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Visual:
    """A video or image, and the part of it that is meant.

    Args:
        source: whatever `bvllm_adapters.read_video` reads. start, end: seconds of a video.
    """

    source: Any
    start: float | None = None
    end: float | None = None

    @property
    def is_picture(self) -> bool:
        """Whether it is decoded already, so that it is best let go of until its turn."""
        return not isinstance(self.source, str | os.PathLike)


@dataclass(frozen=True)
class Asked:
    """One prompt: what is shown, what is asked, and what was said before.

    Args:
        history: earlier questions, each with its answer. system: what the conversation begins with.
    """

    visuals: tuple[Visual, ...]
    text: str
    history: Turns = ()
    system: str | None = None

    @classmethod
    def of_text(cls, text: str, visuals: Any) -> Asked:
        """Of a task's text and what its `doc_to_visual` gave: a list, one visual, or None."""
        if visuals is None:
            return cls((), text)
        if not isinstance(visuals, list | tuple):
            visuals = [visuals]
        return cls(tuple(map(visual_of, visuals)), text)

    @classmethod
    def of_messages(cls, messages: Sequence[Mapping[str, Any]]) -> Asked:
        """Of a task's chat messages, the last of which is the user's.

        Raises:
            ValueError: for messages that are no conversation, or what is no picture or video.
        """
        visuals: list[Visual] = []
        turns: list[tuple[str, str]] = []
        for message in messages:
            content = message["content"]
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            visuals += [visual_of(part) for part in content if part["type"] != "text"]
            text = "\n".join(part["text"] for part in content if part["type"] == "text")
            turns.append((message["role"], text))
        system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
        roles = [role for role, _ in turns]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise ValueError(
                f"messages: got turns of {roles}, wanted user and assistant by turns, the user last"
            )
        said = [text for _, text in turns]
        history = tuple(zip(said[:-1:2], said[1::2], strict=True))
        return cls(tuple(visuals), said[-1], history, system)


def visual_of(given: Any) -> Visual:
    """Of a path, a picture, an array, or a dict that holds one with its times.

    Raises:
        ValueError: for sound.
    """
    start = end = None
    while isinstance(given, Mapping):  # a message's part may hold a task's own dict
        if given.get("type") == "audio":
            raise ValueError("visuals: got audio, wanted videos or images")
        start = _first(given, "video_start", "start_time", otherwise=start)
        end = _first(given, "video_end", "end_time", otherwise=end)
        source = _first(given, "url", "path", "video", "image")
        if source is None:
            raise ValueError(f"visuals: got {sorted(given)}, wanted url or path among them")
        given = source
    return Visual(given, start, end)


def one_video(visuals: Sequence[Visual]) -> Visual | None:
    """What visuals are together, as a model sees one video or image; None: none, or too unlike.

    Pictures of one size are the frames of a video: that is how tasks hand over one that comes as a
    folder of frames.
    """
    if len(visuals) == 1:
        return visuals[0]
    pictures = [visual.source for visual in visuals]
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        return None
    if len({picture.size for picture in pictures}) > 1:
        return None
    return Visual(pictures)


def _first(given: Mapping[str, Any], *names: str, otherwise: Any = None) -> Any:
    return next((given[name] for name in names if given.get(name) is not None), otherwise)
