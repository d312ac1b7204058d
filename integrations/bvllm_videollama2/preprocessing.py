"""Frames, pixels and ids as upstream's own inference makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from torch import Tensor

from bvllm_adapters.checks import check_count
from bvllm_adapters.hosts.turns import messages
from bvllm_adapters.question import without
from bvllm_adapters.weights.image_processors import (
    by_pil,
    clip_processor,
    read_image_processor,
    squared,
)
from bvllm_adapters.weights.json_file import CheckpointError, blamed, read_json
from bvllm_adapters.weights.sizes import check_settings
from bvllm_videollama2.prompts import SYSTEM, TAGS, WITH_SYSTEM, Kind, text_tokenizer


def frame_indices(
    count: int, *, num_frames: int | None = None, fps: float | None = None
) -> list[int]:
    """Which of `count` frames the host itself looks at.

    Args:
        num_frames: as many, one from the middle of each of as many equal parts.
        fps: instead, that of the source: one frame from the middle of each second.

    >>> frame_indices(100, num_frames=4)
    [12, 37, 62, 87]
    """
    check_count("count", count)
    if (num_frames is None) == (fps is None):
        raise ValueError(f"num_frames, fps: got {num_frames} and {fps}, wanted one of the two")
    if num_frames is None:
        step = min(int(fps or 0), count)
        if step < 1:
            raise ValueError(f"fps: got {fps}, wanted 1 or more")
        return list(range(step // 2, count, step))
    check_count("num_frames", num_frames)
    # A little more than the middle, so that halves are rounded up.
    middles = (np.arange(num_frames) + 0.5) * ((count - 1) / num_frames) + 1e-6
    return [int(i) for i in np.round(middles)]


def pixels(
    frames: npt.NDArray[np.uint8] | Sequence[Image.Image],
    image_processor: Any,
    *,
    aspect_ratio: Literal["pad"] | None = None,
    num_frames: int | None = None,
) -> Tensor:
    """Frames -> (T, 3, S, S) float32 pixels of the tower.

    Args:
        frames: (T, H, W, 3) uint8 RGB, or T images; an image is one frame.
        image_processor: of the tower.
        aspect_ratio: "pad" makes frames square by a margin in the mean colour, as in upstream's
            training; None leaves it to the image processor, as in upstream's inference.
        num_frames: T at least; black frames are put behind fewer.
    """
    images = [
        frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in frames
    ]
    if not images:
        raise ValueError("frames: got none, wanted at least one")
    while len(images) < (num_frames or 0):
        # Upstream takes width for height, each time; it shows only where margins are added.
        images.append(Image.new("RGB", images[-1].size[::-1]))
    if aspect_ratio == "pad":
        images = [squared(image, image_processor.image_mean) for image in images]
    elif aspect_ratio is not None:
        raise ValueError(f"aspect_ratio: got {aspect_ratio!r}, wanted 'pad' or None")
    found: Tensor = image_processor(images, return_tensors="pt")["pixel_values"]
    return found


def image_processor_for(config: Any, folder: str | Path | None = None) -> Any:
    """Image processor of a tower: from its folder's preprocessor_config.json or its sizes.

    The PIL variant is used, whose pixels are upstream's, with or without torchvision.
    """
    family = "Siglip" if config.model_type == "siglip_vision_model" else "CLIP"
    if folder is not None and (Path(folder) / "preprocessor_config.json").is_file():
        return read_image_processor(family, Path(folder))
    if family == "Siglip":
        return by_pil(family)(size={"height": config.image_size, "width": config.image_size})
    return clip_processor(config.image_size)


class Videollama2Processor:
    """Tokenizer, image processor and prompt format of one checkpoint.

    Args:
        tokenizer: of the language model. image_processor: of the tower.
        num_frames: that the unwrapped host looks at. model_type: picks the system message.
    """

    def __init__(
        self, tokenizer: Any, image_processor: Any, num_frames: int, model_type: str
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.num_frames = num_frames
        self.system = SYSTEM if model_type in WITH_SYSTEM else None

    @classmethod
    def from_folder(cls, folder: str | Path) -> Videollama2Processor:
        """Of a checkpoint folder; the tower's folder is looked for as when loading."""
        from bvllm_videollama2.configuration import tower_config, tower_folder

        folder = Path(folder)
        file = folder / "config.json"
        fields = read_json(file)
        check_settings(file, fields)
        with blamed(file):
            config: Any = transformers.PreTrainedConfig()
            config.mm_vision_tower = fields["mm_vision_tower"]
            config.mm_vision_config = fields.get("mm_vision_config")
            config.name_or_path = str(folder)
            here = folder if (folder / "preprocessor_config.json").is_file() else None
            return cls(
                text_tokenizer(str(folder)),
                image_processor_for(tower_config(config), here or tower_folder(config)),
                fields.get("num_frames") or 8,
                fields["model_type"],
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Tokenizer and image processor, into a checkpoint's folder."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def prompt(
        self,
        question: str,
        kind: Kind,
        history: Sequence[tuple[str, str]] = (),
        system: str | None = None,
    ) -> str:
        """A conversation as text, with a tag where the video or image belongs.

        Args:
            question: the one to be answered. history: (question, answer) of the turns before it;
                the first turn has the tag. Tags in them are left out.
            system: what it begins with, in place of upstream's words.

        Raises:
            ValueError: for a `system` that the chat template has no place for.
        """
        turns = [text for turn in history for text in turn] + [question]
        turns = [without(text, [tag for tag, _ in TAGS.values()]) for text in turns]
        turns[0] = f"{TAGS[kind][0] if kind in TAGS else ''}\n{turns[0]}"
        if system is not None and self.system is not None:  # in the marks that upstream's is in
            system = f"<<SYS>>\n{system}\n<</SYS>>"
        begin = self.system if system is None else system
        if not self.tokenizer.chat_template:
            raise CheckpointError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no chat template, wanted one in "
                "its tokenizer_config.json or chat_template.jinja"
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages(turns, begin), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template raises
            if system is None:
                raise
            raise ValueError(f"system: got {system!r:.80}, wanted None: {error}") from error
        return text

    def ids(self, prompt: str, kind: Kind) -> Tensor:
        """(1, L) int64 ids of a prompt, -201 for its video, -200 for its image."""
        tag, placeholder = TAGS.get(kind, (None, None))
        ids: list[Any] = []
        for i, piece in enumerate(prompt.split(tag) if tag else [prompt]):
            if i:
                ids.append(placeholder)
            ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return torch.tensor([ids])

    def settings(self, model: Any) -> dict[str, Any]:
        """Of generate(), as upstream infers: greedy, up to the model's or the tokenizer's end."""
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        end = self.tokenizer.eos_token_id
        return {
            "do_sample": False,
            "eos_token_id": sorted({end, *ends} - {None}),
            "pad_token_id": end,
        }

    def pixels(self, frames: npt.NDArray[np.uint8] | Sequence[Image.Image]) -> Tensor:
        """(T, H, W, 3) uint8 frames -> (T, 3, S, S) float32 pixels, as upstream infers."""
        return pixels(frames, self.image_processor)
