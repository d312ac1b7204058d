"""The video models of transformers that are served, each by a short description.

What is not said here is read off the model itself: whether positions are of three axes
(`get_rope_index`), whether encoders give further levels (`deepstack_features`), whether its visual
tokens come as one tensor or as a list, which arguments its encoder takes, and whether each group
of frames has a text of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bvllm_transformers.splits import Clip, Frames, Grid, Split


@dataclass(frozen=True)
class Family:
    """How one family of models takes videos.

    Args:
        call: method of the base model that encodes. key: under which `mm_encoder_outputs` takes
            what it gives.
        token: field of the config, the id of placeholders.
        split: how frames lie in the arguments.
        tail: placeholders behind each video that are of no frame. tail_from: the base model's
            parameter that stands there.
        text_after: whether a frame's own text stands behind it, not before.
        pixels_as: the encoder's name for pixels, where it is not that of forward().
        rope: further arguments of `get_rope_index`, by the name that forward() has for them.
    """

    call: str = "get_video_features"
    key: str = "video"
    token: str = "video_token_id"
    split: Split = field(default_factory=Grid)
    tail: int = 0
    tail_from: str = "image_newline"
    text_after: bool = False
    pixels_as: str | None = None
    rope: Mapping[str, str] = field(default_factory=dict)


GRID = Family()
CLIP = Family(split=Clip())
IMAGES = Family("get_image_features", "image", "image_token_id", Frames())
GLM = Family(key="image", token="image_token_id", text_after=True)
OMNI = Family(rope={"second_per_grids": "video_second_per_grid"})

FAMILIES: dict[str, Family] = {
    "Qwen2VLForConditionalGeneration": GRID,
    "Qwen2_5_VLForConditionalGeneration": GRID,
    "Qwen3VLForConditionalGeneration": GRID,
    "Qwen3VLMoeForConditionalGeneration": GRID,
    "Qwen3_5ForConditionalGeneration": GRID,
    "Qwen3_5MoeForConditionalGeneration": GRID,
    "Qwen4ExpForConditionalGeneration": GRID,
    "Qwen2_5OmniThinkerForConditionalGeneration": OMNI,
    "Qwen3OmniMoeThinkerForConditionalGeneration": OMNI,
    "Cosmos3OmniForConditionalGeneration": GRID,
    "Cosmos3EdgeForConditionalGeneration": GRID,
    "CohereCompassForConditionalGeneration": GRID,
    "Lfm3VlForConditionalGeneration": GRID,
    "Exaone4_5_ForConditionalGeneration": GRID,
    "HyperCLOVAXVisionV2ForConditionalGeneration": GRID,
    "MuseGlimmerForConditionalGeneration": GRID,
    "VideoLlama3ForConditionalGeneration": GRID,
    "Glm4vForConditionalGeneration": GLM,
    "Glm46VForConditionalGeneration": GLM,
    "Glm4vMoeForConditionalGeneration": GLM,
    "GlmOcrForConditionalGeneration": GLM,
    "LlavaOnevisionForConditionalGeneration": Family(split=Clip(), tail=1),
    "LlavaNextVideoForConditionalGeneration": CLIP,
    "VideoLlavaForConditionalGeneration": CLIP,
    "PerceptionLMForConditionalGeneration": Family(
        "get_image_features", split=Clip(), pixels_as="pixel_values"
    ),
    "InternVLForConditionalGeneration": IMAGES,
    "Gemma3ForConditionalGeneration": IMAGES,
    "Ovis2ForConditionalGeneration": IMAGES,
}


def family_of(model: Any) -> Family:
    """That of a live model: of the first known class among its own and its bases."""
    for cls in type(model).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise ValueError(f"model: got a {type(model).__name__}, wanted one of {sorted(FAMILIES)}")
