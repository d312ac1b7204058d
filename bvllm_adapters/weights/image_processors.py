"""Image processors of published towers, by PIL: the pixels that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from PIL import Image

from bvllm_adapters.weights.json_file import CheckpointError, blamed, is_number, read_json
from bvllm_adapters.weights.sizes import MOST_PIXELS, check_present


def by_pil(family: str) -> Any:
    """The image processor class of "CLIP" or "Siglip" that works on PIL images, whose pixels are
    those of years ago, with or without torchvision."""
    name = f"{family}ImageProcessor"
    # transformers 5.0 had ...Fast beside this name, later ones have ...Pil.
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def read_image_processor(family: str, folder: Path) -> Any:
    """That of preprocessor_config.json in a folder or, as transformers 5 saves it with a tokenizer,
    of processor_config.json.

    Raises:
        CheckpointError: for a file that cannot be read, or settings that make no pictures.
    """
    file, both = folder / "preprocessor_config.json", folder / "processor_config.json"
    if both.is_file() and not file.is_file():
        file, values = both, read_json(both).get("image_processor")
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: got no image_processor, wanted its settings")
    else:
        values = read_json(file)
    with blamed(file):
        processor = by_pil(family).from_dict(values)
    check_image_processor(file, values, processor)
    return processor


def check_image_processor(file: Path, values: Mapping[str, Any], processor: Any) -> None:
    """CheckpointError unless an image processor's settings are there, and of the kinds and within
    the bounds that those of published towers are.

    Args:
        values: that `processor` was made of; what is missing there would be a default's.
    """
    check_present(file, values, "size image_mean image_std")
    for name in ("image_mean", "image_std"):
        value = getattr(processor, name, None)
        least = 0 if name == "image_mean" else 1e-3
        parts = list(value) if isinstance(value, list | tuple) else []
        if len(parts) != 3 or not all(is_number(part) and least <= part <= 1 for part in parts):
            raise CheckpointError(f"{file}: {name}: got {value!r}, wanted 3 numbers up to 1")
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"):
        value = getattr(processor, name, None)
        as_usual = value is None and getattr(type(processor), name, None) is None
        if not isinstance(value, bool) and not as_usual:
            raise CheckpointError(f"{file}: {name}: got {value!r}, wanted true or false")
    factor: Any = getattr(processor, "rescale_factor", None)
    if not is_number(factor) or not 0 < factor <= 1:
        raise CheckpointError(f"{file}: rescale_factor: got {factor!r}, wanted a number up to 1")
    for name in ("size", "crop_size"):
        value = getattr(processor, name, None)
        sides = dict(value) if value is not None else {}
        if any(not _is_side(side) for side in sides.values() if side is not None):
            raise CheckpointError(
                f"{file}: {name}: got {value!r}, wanted pixels up to {MOST_PIXELS}"
            )
    resample: Any = getattr(processor, "resample", None)
    if not isinstance(resample, int) or isinstance(resample, bool) or not 0 <= resample <= 5:
        raise CheckpointError(f"{file}: resample: got {resample!r}, wanted one of PIL's, 0 to 5")


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_PIXELS


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
