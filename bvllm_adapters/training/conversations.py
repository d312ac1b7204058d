"""A row of training data: a conversation about images and videos, as LLaVA's JSON has it.

LLaVA, Valley, Video-LLaVA, VideoLLaMA2 and LLaMA-VID publish their data in this one format:

    [{"id": "0", "video": "valley/1.mp4", "conversations": [
        {"from": "human", "value": "<video>\\nWhat happens?"},
        {"from": "gpt", "value": "A rabbit wakes up."}]}, ...]

A turn from "system" may stand before all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bvllm_adapters.question import without
from bvllm_adapters.tables.media_paths import RowError as RowError
from bvllm_adapters.tables.media_paths import media_path

Kind = Literal["image", "video"]
TAGS: dict[str, Kind] = {"<image>": "image", "<video>": "video"}
TAG = re.compile("|".join(TAGS))


@dataclass(frozen=True)
class Medium:
    """An image or a video of a row."""

    kind: Kind
    path: Path

    @property
    def tag(self) -> str:
        """What stands for it in a conversation."""
        return f"<{self.kind}>"


@dataclass(frozen=True)
class Row:
    """One conversation.

    Args:
        name: file, place in it and id, for messages.
        turns: what human and model say in turn, the human first and the model last. The human's
            hold a tag "<image>" or "<video>" for each medium.
        media: what the tags stand for, in reading order.
        system: what the model is told before all turns; None: what its chat format says itself.
    """

    name: str
    turns: tuple[str, ...]
    media: tuple[Medium, ...] = ()
    system: str | None = None

    @property
    def question(self) -> str:
        """What the first turn asks, without tags: all that the Q-Formers are told."""
        return without(self.turns[0], TAGS).strip()


def parse(raw: Any, media: Path, name: str, *, outside: bool = False) -> Row:
    """One object of the JSON as a Row.

    - A turn's only tag goes to its beginning, as the hosts' own prompts have it; media that no tag
      stands for go before the first question. A tag takes the next medium of its kind or, where a
      row has media of one kind only, the next one (LLaMA-VID's data say "<image>" of videos).
    - What a model says before the first question, and a last question without answer, are left out.

    Args:
        media: folder that images and videos are named from. name: for messages.
        outside: whether `..` may lead out of that folder.

    Raises:
        RowError: what cannot be learned from.
    """
    if not isinstance(raw, Mapping):
        raise RowError(f"got {type(raw).__name__}, wanted an object with conversations")
    system, turns = _turns(raw.get("conversations"))
    paths = {
        kind: [media_path(kind, path, media, outside=outside) for path in _paths(raw, kind)]
        for kind in TAGS.values()
    }
    if any(TAG.search(answer) for answer in turns[1::2]):
        raise RowError(
            "conversations: got <image> or <video> in an answer, wanted it in a question"
        )
    tags = [tag for turn in turns for tag in TAG.findall(turn)]
    present = [kind for kind, found in paths.items() if found]
    if not tags and len(present) == 1:
        tags = [f"<{present[0]}>"] * len(paths[present[0]])
        turns[0] = "".join(tags) + turns[0]
    kinds = [present[0] if len(present) == 1 else TAGS[tag] for tag in tags]
    for kind, found in paths.items():
        if kinds.count(kind) != len(found):
            raise RowError(
                f"{kind}: got {len(found)}, wanted {kinds.count(kind)}, one for each tag in "
                "conversations"
            )
    waiting = {kind: iter(found) for kind, found in paths.items()}
    found_media = tuple(Medium(kind, next(waiting[kind])) for kind in kinds)
    named = iter(found_media)
    questions = [_arranged(TAG.sub(lambda _: next(named).tag, turn)) for turn in turns[::2]]
    both = zip(questions, turns[1::2], strict=True)
    return Row(name, tuple(turn for pair in both for turn in pair), found_media, system)


def _turns(conversations: Any) -> tuple[str | None, list[str]]:
    """What the system says, if anything, and what human and model say in turn, stripped, from the
    first question to the last answer."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str):
        raise RowError(f"conversations: got {type(conversations).__name__}, wanted a list of turns")
    system: str | None = None
    turns: list[tuple[str, str]] = []
    for i, turn in enumerate(conversations):
        speaker, text = (
            (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else (None, None)
        )
        if speaker not in ("system", "human", "gpt") or not isinstance(text, str):
            raise RowError(
                f"conversations[{i}]: got {str(turn)[:80]!r}, "
                'wanted {"from": "human" or "gpt", "value": text}'
            )
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise RowError(f"conversations[{i}]: got half a character, wanted Unicode")
        if speaker == "system":
            if i > 0:
                raise RowError(f"conversations[{i}]: got a turn of 'system', wanted it first")
            if TAG.search(text):
                raise RowError("conversations[0]: got <image> or <video> in a turn of 'system'")
            system = text.strip()
            continue
        if turns and turns[-1][0] == speaker:
            raise RowError(f"conversations[{i}]: got two turns of {speaker!r} in a row")
        turns.append((speaker, text.strip()))
    if turns and turns[0][0] == "gpt":
        del turns[0]
    if turns and turns[-1][0] == "human":
        del turns[-1]
    if not turns:
        raise RowError("conversations: got no question with an answer, wanted one or more")
    return system, [text for _, text in turns]


def _paths(raw: Mapping[str, Any], kind: Kind) -> list[str]:
    value = raw.get(kind)
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, Sequence) or not all(isinstance(p, str) and p for p in paths):
        raise RowError(f"{kind}: got {value!r}, wanted a path, or a list of them")
    return list(paths)


def _arranged(turn: str) -> str:
    tags = TAG.findall(turn)
    if len(tags) != 1:
        return turn.strip()
    return f"{tags[0]}\n{without(turn, TAGS).strip()}".strip()
