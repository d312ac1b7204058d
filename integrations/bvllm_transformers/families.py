"""The video models of transformers that are served, each by a short description.

What is not said here is read off the model itself: whether positions are of three axes
(`get_rope_index`), whether encoders give further levels (`deepstack_features`), whether its visual
tokens come as one tensor or as a list, which arguments its encoder takes, and whether each group
of frames has a text of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bvllm_adapters.hosts.host import HostError
from bvllm_transformers.odd_splits import Chunks, Compressed, Counted, Packed, Pooled, Segments
from bvllm_transformers.splits import Clip, Frames, Grid, Images, PaddedClip, Split


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

    @property
    def shares_token(self) -> bool:
        """Whether videos beside images stand at the images' placeholders."""
        return self.token == "image_token_id" and self.split.pixels != "pixel_values"


GRID = Family()
CLIP = Family(split=Clip())
FRAMES = Family("get_image_features", "image", "image_token_id", Frames())
PADDED = PaddedClip("pixel_values", ("pixel_attention_mask",), loose=True)
IMAGES = Family("get_image_features", "image", "image_token_id", Images())
GLM = Family(key="image", token="image_token_id", text_after=True)
OMNI = Family(rope={"second_per_grids": "video_second_per_grid"})
GEMMA4 = Family(split=Counted())
MINICPM = Family(split=Packed())
QFORMER = ("qformer_input_ids", "qformer_attention_mask")

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
    "Ernie4_5_VLMoeForConditionalGeneration": Family(split=Grid(each=2)),
    "VideoLlama3ForConditionalGeneration": Family(split=Compressed(beside=("video_merge_sizes",))),
    "Kimi_K25ForConditionalGeneration": Family(split=Chunks()),
    "MiniMaxM3SparseForConditionalGeneration": Family(split=Segments()),
    "Glm4vForConditionalGeneration": GLM,
    "Glm46VForConditionalGeneration": GLM,
    "Glm4vMoeForConditionalGeneration": GLM,
    "GlmOcrForConditionalGeneration": GLM,
    "Glm5NextForConditionalGeneration": replace(GLM, key="video"),
    "LlavaOnevisionForConditionalGeneration": Family(split=Clip(), tail=1),
    "LlavaNextVideoForConditionalGeneration": CLIP,
    "VideoLlavaForConditionalGeneration": CLIP,
    "PerceptionLMForConditionalGeneration": Family(
        "get_image_features", split=Clip(), pixels_as="pixel_values"
    ),
    "NemotronH_Omni_Reasoning_V3": Family(token="image_token_id", split=Clip()),
    "InstructBlipVideoForConditionalGeneration": Family(split=Clip("pixel_values", QFORMER)),
    "Gemma4ForConditionalGeneration": GEMMA4,
    "Gemma4UnifiedForConditionalGeneration": GEMMA4,
    "Molmo2ForConditionalGeneration": Family(token="image_token_id", split=Pooled()),
    "MiniCPMV4_6ForConditionalGeneration": MINICPM,
    "MiniCPMV4_7ForConditionalGeneration": MINICPM,
    "MiniCPMOcrForConditionalGeneration": MINICPM,
    "InternVLForConditionalGeneration": FRAMES,
    "Gemma3ForConditionalGeneration": FRAMES,
    "Ovis2ForConditionalGeneration": FRAMES,
    "Step3p7ForConditionalGeneration": replace(FRAMES, split=Frames(ragged="pixel_values_local")),
    "SmolVLMForConditionalGeneration": replace(FRAMES, split=PADDED),
    "LlavaForConditionalGeneration": replace(FRAMES, split=Frames(ragged="image_sizes")),
    "LlavaNextForConditionalGeneration": IMAGES,
    "Idefics3ForConditionalGeneration": IMAGES,
    "Mistral3ForConditionalGeneration": IMAGES,
}

_THINKER = "it only passes on what its thinker makes to a voice; wrap the model's `.thinker`"
NOT_SERVED: dict[str, str] = {
    "Qwen2_5OmniForConditionalGeneration": _THINKER,
    "Qwen3OmniMoeForConditionalGeneration": _THINKER,
    "EmbeddingGemma2Model": "it gives embeddings and generates nothing",
    "PeVideoModel": "it gives embeddings and generates nothing",
    "VideoPrismClipModel": "it gives embeddings and generates nothing",
    "XCLIPModel": "it gives embeddings and generates nothing",
}

# Of which vLLM takes any number of tokens as an image's, and positions are one line.
IMAGE_EMBEDS = ("LlavaOnevisionForConditionalGeneration", "InternVLForConditionalGeneration")


def family_of(model: Any) -> Family:
    """That of a live model: of the first known class among its own and its bases.

    Raises:
        HostError: it is not served, and why.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in NOT_SERVED:
            raise HostError(f"model: got a {cls.__name__}: {NOT_SERVED[cls.__name__]}")
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise HostError(f"model: got a {type(model).__name__}, wanted one of {sorted(FAMILIES)}")


def check_asked(model: Any, processor: Any) -> None:
    """HostError: models of this class are served where they are called with what their processor
    makes, but our reader's frames cannot be shown to them."""
    split = family_of(model).split
    if type(split) in (Clip, Frames) or split == Grid():
        return
    raise HostError(
        f"model: got a {type(model).__name__}, whose videos bvllm does not read by itself yet, "
        "wanted model.generate(**processor.apply_chat_template(...)), which keeps the budget too"
    )


def check_served(model: Any) -> None:
    """HostError: models of this class are served, but not as this one is configured."""
    family_of(model)
    config = model.config
    if getattr(config, "video_pruning_rate", 0):
        raise HostError(
            f"config.video_pruning_rate: got {config.video_pruning_rate}, wanted 0: the model "
            "drops tokens by itself, of which none would be left to the budget"
        )
    if not getattr(config, "use_decoder_only_language_model", True):
        raise HostError(
            "config.use_decoder_only_language_model: got False, wanted True: prompts of an "
            "encoder are not served"
        )


def check_takes_image_embeds(model: Any) -> None:
    """HostError: an engine that is given visual tokens of this class would read them wrongly."""
    names = [cls.__name__ for cls in type(model).__mro__]
    if any(name in IMAGE_EMBEDS for name in names):
        return
    why = "of which no engine was seen to take any number of tokens"
    if hasattr(model.base_model, "get_rope_index"):
        why = "whose positions lie in a grid, which an engine would count from another one's size"
    raise HostError(
        f"model: got a {names[0]}, {why}, wanted one of {list(IMAGE_EMBEDS)}; chosen frames can be "
        "sent to any (bvllm_adapters.engines.writers)"
    )
