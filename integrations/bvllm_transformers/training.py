"""How these models are trained: their processor's chat format, with places for visual tokens.

Axes: k groups of a video (see `splits`) of n frames each, L ids of a prompt, B rows of a batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.hosts.turns import special_tokens
from bvllm_adapters.question import TAGS, without
from bvllm_adapters.training.conversations import Kind
from bvllm_adapters.training.host import Example, Expanded, Visual
from bvllm_adapters.video.frames import Video
from bvllm_transformers.answers import tokens_of_one
from bvllm_transformers.conversation_prompts import (
    blank,
    image_pixels,
    tokens_of_visuals,
    with_visuals,
)
from bvllm_transformers.families import family_of
from bvllm_transformers.layout import (
    ImagePixels,
    Layout,
    encoder_inputs,
    frames_per_look,
    lay_out,
    video_pixels,
)
from bvllm_transformers.splits import Clip, Frames, Grid

_TAG = re.compile(f"({'|'.join(TAGS)})")
_TRAINED = (Grid, Clip, Frames)  # as whose arguments pixels are put together here
_OF_IDS = ("input_ids", "attention_mask")
_SIDE = 64  # of a picture of any size


class TransformersTraining:
    """See `bvllm_adapters.training.host.HostTraining`.

    A row's videos are shown at their true times, in pictures of the size that the budget has room
    for, as `bvllm.ask` shows them; its images as the processor makes them.

    Args:
        processor: of the model. model: wrapped; nothing of it is kept but settings.

    Raises:
        HostError: a family whose pixels are not put together here, or a processor without chat
            template or words for visual inputs.
    """

    def __init__(self, processor: Any, model: Any) -> None:
        self.processor, self.family = processor, family_of(model)
        split = self.family.split
        if type(split) not in _TRAINED or split.beside or getattr(split, "each", 1) > 1:
            raise HostError(
                f"model: got a {type(model).__name__}, whose pixels are of a kind of their own, "
                "wanted one whose frames lie in a grid, a clip or a list, to be trained here"
            )
        if not getattr(processor, "chat_template", None):
            raise HostError("processor: got one without chat_template, wanted that of a chat model")
        # Of frames that are written as images no prompt tells which of them make a video.
        self.max_media = 1 if isinstance(split, Frames) else None
        self.config = tokenizer_of(model).config
        tokenizer = processor.tokenizer
        words = {kind: str(getattr(processor, f"{kind}_token", "")) for kind in TAGS_OF}
        self.token_of = {
            kind: tokenizer.convert_tokens_to_ids(word) for kind, word in words.items()
        }
        for kind, word in words.items():
            if tokenizer(word, add_special_tokens=False)["input_ids"] != [self.token_of[kind]]:
                raise HostError(
                    f"processor: got {word!r} for {kind}s, wanted a word of its tokenizer's"
                )
        self.placeholders = tuple(self.token_of.values())
        self.special = (special_tokens(tokenizer) | tokens_of_visuals(processor)) - {*TAGS}
        pad = tokenizer.pad_token_id  # masked wherever it stands, so that any word will do
        self.pad_token_id: int = tokenizer.eos_token_id if pad is None else pad
        self.end_ids = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self.native = 0  # P of a processor that makes all pictures of one size
        if not isinstance(split, Grid):
            self.native = tokens_of_one(model, processor, _SIDE, _SIDE)

    def prompt(self, turns: Sequence[str], *, system: str | None = None) -> str:
        messages = [] if system is None else [self._message("system", system)]
        messages += [
            self._message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)
        ]
        text: str = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=len(turns) % 2 == 1
        )
        return text

    def _message(self, role: str, turn: str) -> dict[str, Any]:
        """Nobody's words stand for anything but themselves."""
        content: list[dict[str, str]] = []
        for part in _TAG.split(turn):
            said = without(part, self.special).strip()
            if part in TAGS:
                content.append({"type": part.strip("<>")})
            elif said:
                content.append({"type": "text", "text": said})
        return {"role": role, "content": content}

    def ids(self, prompt: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(prompt)["input_ids"]
        return ids

    def visual(self, kind: Kind, video: Video) -> Visual:
        """Groups of frames, each at the mean of their times; the last frame stands for missing
        ones."""
        height, width = video.frames.shape[1:3]
        if kind == "image":
            layout = Layout(height, width, patches_per_frame=1, is_image=True)
            pixels: Any = image_pixels(self.processor, video.frames[0])
            return Visual(kind, pixels, torch.zeros(1, dtype=torch.float64), layout)
        size = frames_per_look(self.family, self.processor)
        groups = -(-len(video.frames) // size)
        member = np.arange(groups * size).clip(max=len(video.frames) - 1).reshape(groups, size)
        layout = lay_out(
            self.family, self.config, self.processor, height, width, groups, lambda: self.native
        )
        pixels = video_pixels(self.processor, video.frames[member], layout)
        seconds = torch.from_numpy(video.seconds[member].mean(axis=1))
        return Visual(kind, pixels, seconds, layout)

    def expanded(self, prompt: str, visuals: Sequence[Visual]) -> Expanded:
        """As the processor writes it, with placeholders and words of each group of frames.

        Raises:
            ValueError: videos of unlike lengths, of a model that stacks them.
        """
        shown: dict[str, list[Visual]] = {}
        for kind in TAGS_OF:
            count = self.ids(prompt).count(self.token_of[kind])
            shown[kind] = [visual for visual in visuals if visual.kind == kind][:count]
        self._check_stacked([visual.pixels for visual in shown["video"]])
        made = with_visuals(
            self.processor, prompt,
            videos=[(visual.layout, visual.seconds) for visual in shown["video"]],
            images=[blank(visual.layout) for visual in shown["image"]],
            frames_per_look=frames_per_look(self.family, self.processor),
        )  # fmt: skip
        ids: list[int] = made["input_ids"][0].tolist()
        pixels = (self.family.split.pixels, "pixel_values")
        rest = {
            name: torch.as_tensor(value)
            for name, value in made.items()
            if name not in (*_OF_IDS, *pixels) and not getattr(value, "is_meta", False)
        }
        of_ids = {name for name, value in rest.items() if value.shape == (1, len(ids))}
        return Expanded(
            ids,
            {name: rest[name][0] for name in of_ids},
            {name: value for name, value in rest.items() if name not in of_ids},
        )

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Pixels of all rows one behind the other, and what the processor gave beside them.

        Raises:
            ValueError: videos of unlike lengths, of a model that stacks them.
        """
        length = max(len(example.input_ids) for example in examples)
        found: dict[str, list[Tensor]] = {}
        for name in {name for example in examples for name in example.of_ids}:
            found[name] = [_padded(example.of_ids.get(name), length) for example in examples]
        visuals = [visual for example in examples for visual in example.visuals]
        self._check_stacked([v.pixels for v in visuals if v.kind == "video"])
        for visual in visuals:
            for name, value in self._arguments(visual):
                found.setdefault(name, []).append(value)
        for example in examples:
            for name, value in example.beside.items():
                if value.dim():  # what the processor says of each medium
                    found.setdefault(name, []).append(value)
        return {name: _joined(name, values) for name, values in found.items()}

    def _arguments(self, visual: Visual) -> Iterator[tuple[str, Tensor]]:
        """Its pixels as arguments of forward()."""
        pixels: Any = visual.pixels
        if isinstance(pixels, ImagePixels):
            yield "pixel_values", pixels.tensor
            return
        name = self.family.split.pixels
        yield name, encoder_inputs(self.family, pixels)[name]

    def _check_stacked(self, videos: Sequence[Tensor]) -> None:
        counts = sorted({len(video) for video in videos})
        if isinstance(self.family.split, Clip) and len(counts) > 1:
            raise ValueError(
                f"video: got several of {counts} frames, wanted one length in a batch, as this "
                "model's are stacked: batch_per_device: 1, and one video in a row"
            )


TAGS_OF: tuple[Kind, ...] = ("image", "video")


def _padded(values: Tensor | None, length: int) -> Tensor:
    """(L,) values of a prompt's ids, None: zeros -> (1, length)."""
    if values is None:
        values = torch.zeros(0, dtype=torch.int64)
    return torch.nn.functional.pad(values, (0, length - len(values)))[None]


def _joined(name: str, values: Sequence[Tensor]) -> Tensor:
    shapes: Mapping[Any, None] = dict.fromkeys(tuple(value.shape[1:]) for value in values)
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: got {list(shapes)}, wanted one shape in a batch: batch_per_device: 1"
        )
    return torch.cat(list(values))
