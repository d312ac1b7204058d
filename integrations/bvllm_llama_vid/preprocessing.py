"""What goes into the model: prompts as ids, frames as pixels, in upstream's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig

from bvllm_adapters.weights.image_processors import clip_processor, read_image_processor, squared
from bvllm_adapters.weights.json_file import blamed, read_json
from bvllm_adapters.weights.sizes import check_kinds, check_present, check_settings
from bvllm_llama_vid.configuration import (
    EvaSizes,
    LlavaConfig,
    QFormerSizes,
    clip_config,
    eva_sizes,
    is_eva,
    question_vocabulary,
)
from bvllm_llama_vid.prompt_tokenizer import IMAGE_TOKEN, PromptTokenizer

SYSTEM = (  # of vicuna_v1, with which the published models were trained
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# Upstream's own settings, of which transformers knows no default.
_KINDS = {
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "num_query": 32,
    "bert_type": "qformer_pretrain",
    "image_aspect_ratio": "pad",
    "mm_vision_config": CLIPVisionConfig().to_dict() | asdict(EvaSizes()),
    "mm_qformer_config": asdict(QFormerSizes()),
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@lru_cache(maxsize=8)
def tokenizer_of(folder: Path) -> PromptTokenizer:
    """The tokenizer of a checkpoint folder, read once."""
    return PromptTokenizer.load(folder, read_config(folder))


def read_config(folder: Path) -> LlavaConfig:
    """config.json of a checkpoint folder, which it remembers."""
    file = folder / "config.json"
    fields = read_json(file)
    check_settings(file, fields)
    check_kinds(file, fields, LlavaConfig().to_dict() | _KINDS)
    check_present(file, fields, "num_attention_heads rms_norm_eps")
    with blamed(file):
        config = LlavaConfig.from_dict(fields)
        config._name_or_path = str(folder)
        question_vocabulary(config)
    return config


@dataclass(frozen=True, eq=False)
class LlamaVidProcessor:
    """Tokenizer and image processor of a checkpoint.

    Args:
        image_processor: transformers' CLIPImageProcessor, the one that works on PIL images.
        pad_images: whether images are made square before they are cropped, as in training.
        system: how a conversation begins.
    """

    tokenizer: PromptTokenizer
    image_processor: Any
    pad_images: bool = False
    system: str = SYSTEM

    @classmethod
    def load(cls, folder: str | Path) -> LlamaVidProcessor:
        """Of a checkpoint folder."""
        folder = Path(folder)
        config = read_config(folder)
        with blamed(folder / "config.json"):
            return cls(
                tokenizer_of(folder),
                image_processor_of(config, folder),
                pad_images=getattr(config, "image_aspect_ratio", None) == "pad",
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Tokenizer and image processor, into a checkpoint's folder."""
        self.tokenizer.save(Path(folder))
        self.image_processor.save_pretrained(folder)

    def prompt(self, *turns: str) -> str:
        """A conversation of questions and answers in turn, up to where the next answer begins.

        The first question is asked about the visual input; a question may hold `<image>` itself.
        """
        image = f"{IMAGE_TOKEN}\n" if IMAGE_TOKEN not in turns[0] else ""
        return self.conversation([image + turns[0], *turns[1:]])

    def conversation(self, turns: Sequence[str]) -> str:
        """The same of turns that say themselves where a visual input stands, if there is one."""
        text = f"{self.system} "
        for i, turn in enumerate(turns):
            text += f" {turn}</s>" if i % 2 else f"USER: {turn} ASSISTANT:"
        return text

    def pixels(self, frames: npt.NDArray[np.uint8], *, pad: bool = False) -> Tensor:
        """(T, H, W, 3) uint8 RGB -> (T, 3, S, S) float32.

        Equal to upstream's to the last bit (it and we resize by PIL).

        Args:
            pad: make frames square by a border of the mean colour: images, never video.
        """
        images = [Image.fromarray(frame) for frame in frames]
        if pad:
            images = [squared(image, self.image_processor.image_mean) for image in images]
        pixels: Tensor = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return pixels


def frame_indices(average_fps: float, num_frames: int) -> npt.NDArray[np.int64]:
    """Which frames of a video upstream's scripts take: one a second, by rounding the frame rate.

    At half a frame a second or less, where they fail, each frame is taken.
    """
    return np.arange(0, num_frames, max(1, round(average_fps)))


def image_processor_of(config: Any, folder: Path) -> Any:
    """The processor that the config names, if it is here; else CLIP's at the tower's size."""
    names = [getattr(config, "image_processor", None)]
    names += [] if is_eva(config) else [config.mm_vision_tower]
    places = [folder / str(name) for name in names if name]  # an absolute name stays itself
    for place in (*places, folder):
        if (place / "preprocessor_config.json").is_file():
            return read_image_processor("CLIP", place)
    sizes: Any = eva_sizes(config) if is_eva(config) else clip_config(config)
    return clip_processor(sizes.image_size, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))
