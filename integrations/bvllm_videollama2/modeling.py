"""VideoLLaMA2 in upstream's class names, calling convention and weight names.

A language model of transformers with a vision tower and a projector in `model`; one prompt holds
ids and a placeholder for each image or video, which are replaced before the language model reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from bvllm_videollama2.calls import Calls
from bvllm_videollama2.configuration import (
    Videollama2LlamaConfig,
    Videollama2MistralConfig,
    Videollama2MixtralConfig,
    Videollama2Qwen2Config,
)
from bvllm_videollama2.experts import apart
from bvllm_videollama2.inputs import (
    Visual,
    is_text_alone,
    used_images,
    with_visual_tokens,
)
from bvllm_videollama2.projectors import build_projector, sees_time
from bvllm_videollama2.vision_tower import VisionTower, build_vision_tower

if TYPE_CHECKING:
    from transformers import GenerationMixin

    class _LanguageModel(PreTrainedModel, GenerationMixin):
        model: Any
else:
    _LanguageModel = object

Prepared = tuple[Tensor | None, Tensor | None, Any, Tensor | None, Tensor | None]
"""input_ids, attention_mask, past_key_values, inputs_embeds, labels; ids or embeddings are None."""


class Videollama2MetaForCausalLM(Calls, _LanguageModel):
    """What the four families have in common; stands before a ...ForCausalLM of transformers.

    Axes: B prompts, L ids of the longest, S length after splicing, D hidden size, N visual tokens.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if getattr(config, "mm_vision_tower", None) is not None:
            self.model.vision_tower = build_vision_tower(config)
            self.model.mm_projector = build_projector(config)
            # So that a saved copy can be loaded where the tower's folder is not.
            config.mm_vision_config = self.model.vision_tower.config.to_diff_dict()

    def get_model(self) -> Any:
        return self.model

    def get_vision_tower(self) -> VisionTower | None:
        """The tower, or None for a language model alone."""
        tower: VisionTower | None = getattr(self.model, "vision_tower", None)
        return tower

    def encode_images_or_videos(self, images: Sequence[Visual]) -> Tensor | list[Tensor]:
        """(images, N, D) visual tokens; a list of (N, D) if the images differ in frames.

        Args:
            images: (pixels, kind) each: (T, 3, S, S) and "video", or (3, S, S) or (1, 3, S, S) and
                "image", which is shown `num_frames` times.
        """
        videos = [self._frames(*image) for image in images]
        if len({len(video) for video in videos}) == 1:
            return self._encode(torch.stack(videos))
        return [self._encode(video[None])[0] for video in videos]

    def _frames(self, pixels: Tensor, kind: str) -> Tensor:
        if kind == "image":
            pixels = pixels.expand(getattr(self.config, "num_frames", 8), -1, -1, -1)
        if pixels.dim() != 4:
            raise ValueError(f"images: got a {kind} of {tuple(pixels.shape)}, wanted (T, 3, S, S)")
        return pixels

    def _encode(self, videos: Tensor) -> Tensor:
        features = self.model.vision_tower(rearrange(videos, "b t c h w -> (b t) c h w"))
        return self.temporal_aggregator(rearrange(features, "(b t) n d -> b t n d", b=len(videos)))

    def temporal_aggregator(self, frames_features: Tensor) -> Tensor:
        """(B, T, P, C) features of the tower -> (B, N, D) visual tokens, by the projector."""
        if not sees_time(self.config):
            frames_features = frames_features.mean(dim=1)
        tokens: Tensor = self.model.mm_projector(frames_features)
        return tokens

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Sequence[Visual] | None,
    ) -> Prepared:
        """Prompts as the language model takes them, each placeholder replaced by visual tokens.

        Args:
            input_ids: (B, L) int64, -200 for an image, -201 for a video.
            attention_mask: (B, L), zero at padding, on either side; None: no padding.
            past_key_values: handed through.
            labels: (B, L), -100 where there is nothing to learn.
            images: one for each placeholder in reading order, and for each prompt without
                placeholder either a dummy, which is not shown, or nothing. None: all as it came.

        Returns:
            (None, mask, past_key_values, (B, S, D) embeddings, labels), or what came with None
            for the embeddings.

        Raises:
            ValueError: for images that do not fit the placeholders.
        """
        if is_text_alone(input_ids, images) or self.get_vision_tower() is None:
            return input_ids, attention_mask, past_key_values, None, labels
        assert images is not None
        used = used_images(input_ids, attention_mask, len(images))
        tokens = self.encode_images_or_videos(images)
        mask, embeds, labels = with_visual_tokens(
            input_ids,
            self.model.embed_tokens,
            [tokens[i] for i in used],
            attention_mask=attention_mask,
            labels=labels,
        )
        if len(used) < len(images):
            # Dummies give the projector a gradient of zeros where no prompt of a batch has images:
            # training on several devices waits for the gradient of every weight.
            embeds = embeds + sum(video[:0].sum() for video in tokens)
        return None, mask, past_key_values, embeds, labels

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, **kwargs: Any
    ) -> None:
        """Modifications: the published names of weights, which the live ones are but for
        Mixtral's experts."""
        state = kwargs.pop("state_dict", None) or self.state_dict()
        kwargs["save_original_format"] = False
        super().save_pretrained(save_directory, state_dict=apart(state), **kwargs)


class Videollama2MistralForCausalLM(Videollama2MetaForCausalLM, MistralForCausalLM):
    config_class = Videollama2MistralConfig


class Videollama2Qwen2ForCausalLM(Videollama2MetaForCausalLM, Qwen2ForCausalLM):
    config_class = Videollama2Qwen2Config


class Videollama2MixtralForCausalLM(Videollama2MetaForCausalLM, MixtralForCausalLM):
    config_class = Videollama2MixtralConfig


class Videollama2LlamaForCausalLM(Videollama2MetaForCausalLM, LlamaForCausalLM):
    config_class = Videollama2LlamaConfig


# from_pretrained() joins Mixtral's experts, which are published one by one, by this.
register_checkpoint_conversion_mapping(
    Videollama2MixtralConfig.model_type,
    get_checkpoint_conversion_mapping("mixtral"),
    overwrite=True,
)

MODELS: dict[str, type[Videollama2MetaForCausalLM]] = {
    model.__name__: model
    for model in (
        Videollama2MistralForCausalLM,
        Videollama2Qwen2ForCausalLM,
        Videollama2MixtralForCausalLM,
        Videollama2LlamaForCausalLM,
    )
}
