"""Image processors of published towers, by PIL: the pixels that they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from PIL import Image


def by_pil(family: str) -> Any:
    """The image processor class of "CLIP" or "Siglip" that works on PIL images, whose pixels are
    those of years ago, with or without torchvision."""
    name = f"{family}ImageProcessor"
    # transformers 5.0 had ...Fast beside this name, later ones have ...Pil.
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def clip_processor(image_size: int, **settings: Any) -> Any:
    """CLIP's: the shortest edge to this size, then the middle square."""
    square = {"height": image_size, "width": image_size}
    return by_pil("CLIP")(size={"shortest_edge": image_size}, crop_size=square, **settings)


def squared(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """In the middle of a square of the mean colour, as the LLaVA family pads images in training.

    Args:
        mean: of each channel, between 0 and 1.
    """
    side = max(image.size)
    colour = tuple(int(255 * channel) for channel in mean)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
