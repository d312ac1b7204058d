"""A processor's options by transformers' names: each is honoured, or refused by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bvllm_qwen2.sources import FramesWanted

GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs")
_FRAMES = ("fps", "num_frames", "do_sample_frames")
_TEXT = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of",
         "add_special_tokens", "verbose")  # fmt: skip
# What changes nothing, as it is so anyway.
_ANYWAY: dict[str, tuple[Any, ...]] = {
    "return_tensors": ("pt", "auto"),
    "return_attention_mask": (True,),
}


@dataclass(frozen=True)
class Options:
    """Of `BvllmQwen2Processor.__call__`.

    Args:
        frames: which of each video. video_metadata: as it came. text: of the tokenizer.
    """

    frames: FramesWanted
    video_metadata: Any
    text: dict[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Options by name, some of them perhaps in transformers' groups.

        Raises:
            TypeError: for one that cannot be honoured. ValueError: for a wrong value.
        """
        named: dict[str, Any] = {}
        for name, value in given.items():
            if name not in GROUPS:
                group = {name: value}
            elif value is None or isinstance(value, Mapping):
                group = dict(value or {})
            else:
                raise TypeError(f"{name}: got {type(value).__name__}, wanted a mapping of names")
            for inner, one in group.items():
                if inner in named and named[inner] != one:
                    raise ValueError(f"{inner}: got {named[inner]!r} and {one!r}, wanted one")
                named[inner] = one
        frames = {name: named.pop(name) for name in _FRAMES if name in named}
        metadata = named.pop("video_metadata", None)
        text = {name: named.pop(name) for name in _TEXT if name in named}
        for name, value in named.items():
            if value is None or value is False or value in _ANYWAY.get(name, ()):
                continue
            if name in _ANYWAY:
                raise ValueError(f"{name}: got {value!r}, wanted {_ANYWAY[name][0]!r}")
            raise TypeError(
                f"{name}: got {value!r:.80}, which this processor has no use for, wanted some of "
                f"{[*_FRAMES, 'video_metadata', *_TEXT]}"
            )
        return cls(FramesWanted(**frames), metadata, {"padding": True, **text})


def for_template(template: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options apart: variables that a chat template has a place for, and those of the processor."""
    own = (*GROUPS, *_FRAMES, *_TEXT, *_ANYWAY, "video_metadata")
    variables = {
        name: value
        for name, value in given.items()
        if name not in own and re.search(rf"\b{re.escape(name)}\b", template)
    }
    return variables, {name: value for name, value in given.items() if name not in variables}
