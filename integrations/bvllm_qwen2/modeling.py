"""A standalone B-VLLM: vision tower -> BalancedTokenizer -> Qwen2 (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2ForCausalLM
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.context import asked
from bvllm_adapters.features import FrameFeatures, VisualTokens
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.hosts.language_model import CACHE_NAMES, cache_name, one_cache
from bvllm_adapters.hosts.splice import (
    PaddingSide,
    SplicedPrompts,
    placeholder_rows,
    places_of_ids,
    splice,
)
from bvllm_adapters.hosts.trainers import beside_all_weights, for_trainers
from bvllm_adapters.seeing.encoding import encode_pixels
from bvllm_adapters.spatial_sampler import SpatialSampler
from bvllm_adapters.weights.device import device_of
from bvllm_qwen2.configuration import BvllmQwen2Config, EvaVisionConfig
from bvllm_qwen2.generating import Generation
from bvllm_qwen2.inputs import VisualTensors
from bvllm_qwen2.vision_tower import VisionTower, init_eva


@dataclass
class BvllmQwen2Output(CausalLMOutputWithPast):
    """A causal language model's output over the spliced prompts, and what was spliced in.

    Args:
        attention_mask: (B, S) of the spliced prompts; to go on from their cache, append a one for
            each new token.
        visual_tokens: of each visual input in reading order, with their provenance.
        labels: (B, S) of the spliced prompts, -100 at visual tokens and padding, where labels came.

    A Trainer that holds logits beside its own labels gets them over the ids, and no labels, see
    `bvllm_adapters.hosts.trainers.for_trainers`.
    """

    attention_mask: Tensor | None = None
    visual_tokens: list[VisualTokens] | None = None
    labels: Tensor | None = None


class BvllmQwen2ForConditionalGeneration(Generation, PreTrainedModel, GenerationMixin):
    """Answers questions about videos and images within a budget of visual tokens.

    Axes: B prompts, L ids of the longest, V placeholders in all prompts, T frames of all visual
    inputs together, S image size in pixels.
    """

    config_class = BvllmQwen2Config
    config: BvllmQwen2Config
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # The tokenizer's stages read each other's parameters; the tower is called as one.
    _no_split_modules = ["VisionTower", "BalancedTokenizer", "Qwen2DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012

    def __init__(self, config: BvllmQwen2Config) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config)
        self.balanced_tokenizer = BalancedTokenizer(config.balanced_tokenizer_config)
        self.language_model: Any = Qwen2ForCausalLM(config.text_config)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Modifications:
        - Vision tower and scout are frozen, as loading makes all parameters trainable.
        - Weights that still lie in the file are copied where they lie unevenly there: sums over
          them would differ in the last bit from those of the model that was saved.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        return loaded

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_counts: Tensor | None = None,
        seconds: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        labels: Tensor | None = None,
        max_tokens: int | None = None,
        generator: torch.Generator | None = None,
        past_key_values: Any = None,
        return_dict: bool | None = None,
        cache: Any = None,
        question_text: Tensor | None = None,
        **kwargs: Any,
    ) -> BvllmQwen2Output | tuple[Any, ...]:
        """Logits over the spliced prompts: each placeholder gives way to its visual tokens.

        Prompts without any placeholder go to the language model as they are.

        Args:
            input_ids: (B, L) int64, a placeholder for each image or video.
            attention_mask: (B, L), zero at padding, on either side; None: no padding. The
                spliced prompts are padded on the left if the first column has a zero, else right.
            pixel_values: (T, 3, S, S) frames of all visual inputs, in reading order.
            frame_counts: (V,) int64, frames of each visual input; they sum to T.
            seconds: (T,) time of each frame in its video; None: one frame a second.
            question_ids: (V, Lq) int64 WordPiece ids of the question to each visual input.
            question_mask: (V, Lq), zero at padding; None: no padding.
            labels: (B, L) int64, -100 where there is nothing to learn. Never seen by the tokenizer.
            max_tokens: visual tokens per prompt, in place of the tokenizer's own limit.
            generator: source of the selector's noise in training.
            past_key_values, cache: two names of one thing. Once it holds something, input_ids
                continue the spliced prompts and attention_mask covers both.
            question_text: (V, Lt) uint8 the same questions in UTF-8, zero at padding, as the
                processor gives them. They go before the ids, as the tokenizer then reads them by
                its own words and limit; a question of `bvllm_adapters.question.asking` goes
                before both.
            kwargs: of Qwen2ForCausalLM, such as use_cache and logits_to_keep.

        Raises:
            ValueError: naming the argument, what came and what was wanted.
        """
        cache = one_cache(cache, past_key_values)
        kwargs |= {cache_name(self.language_model.forward): cache, "return_dict": True}
        visual = VisualTensors(
            pixel_values, frame_counts, seconds, question_ids, question_mask, question_text
        )
        tokens: list[VisualTokens] | None = None
        places: list[Tensor] = []
        if input_ids is None or not bool(self._is_placeholder(input_ids).any()):
            visual.apart([], self.image_size)
            if input_ids is not None and attention_mask is not None:
                kwargs.setdefault("position_ids", _positions(attention_mask, input_ids.shape[1]))
            ids, embeds = beside_all_weights(self, input_ids, kwargs.pop("inputs_embeds", None))
            output = self.language_model(
                input_ids=ids,
                inputs_embeds=embeds,
                attention_mask=attention_mask,
                labels=labels,
                **kwargs,
            )
        else:
            self._check_continues_nothing(cache, kwargs)
            tokens = self.visual_tokens(
                input_ids, visual, attention_mask, max_tokens=max_tokens, generator=generator
            )
            with places_of_ids() as places:
                prompts = self.splice(
                    input_ids,
                    tokens,
                    attention_mask=attention_mask,
                    labels=labels,
                    padding_side=_padding_side(attention_mask),
                )
            attention_mask, labels = prompts.attention_mask, prompts.labels
            _, embeds = beside_all_weights(self, None, prompts.inputs_embeds)
            output = self.language_model(
                inputs_embeds=embeds,
                attention_mask=attention_mask,
                position_ids=prompts.position_ids,
                labels=labels,
                **kwargs,
            )
        read_by_trainer = for_trainers(self, output, places, labels, kwargs)
        result = BvllmQwen2Output(
            **output,
            attention_mask=attention_mask,
            visual_tokens=tokens,
            labels=None if read_by_trainer else labels,
        )
        return result.to_tuple() if return_dict is False else result

    def freeze(self) -> None:
        """Vision tower and scout do not train."""
        self.vision_tower.freeze()
        if self.balanced_tokenizer.scout is not None:
            self.balanced_tokenizer.scout.requires_grad_(False)

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(k, 3, S, S) pixels -> (k, C) frame features, (k, P, C) patches, on the
        device of the words."""
        feature, patches = self.vision_tower(pixels, self.balanced_tokenizer.config.frame_feature)
        device = device_of(self.get_input_embeddings())
        return feature.to(device), patches.to(device)

    def encode(self, pixels: Tensor, seconds: Tensor | None = None) -> FrameFeatures:
        """(T, 3, S, S) pixels of one video or image as the tower sees it, a chunk at a time."""
        return encode_pixels(
            self.look,
            pixels,
            seconds,
            self.balanced_tokenizer,
            chunk_size=self.vision_tower.chunk_size,
        )

    def visual_tokens(
        self,
        input_ids: Tensor,
        visual: VisualTensors,
        attention_mask: Tensor | None = None,
        *,
        max_tokens: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[VisualTokens]:
        """Visual tokens for each placeholder, in reading order. Args: see `forward`."""
        is_placeholder = self._is_placeholder(input_ids)
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(
                    f"attention_mask: got shape {tuple(attention_mask.shape)}, "
                    f"wanted {tuple(input_ids.shape)} as input_ids"
                )
            is_placeholder &= attention_mask.bool()
        is_image = (input_ids[is_placeholder] == self.config.image_token_id).tolist()
        rows = placeholder_rows(input_ids, self.placeholders, attention_mask)
        inputs = visual.apart(is_image, self.image_size, [asked(row) for row in rows])
        tokens: list[VisualTokens] = self.balanced_tokenizer(
            [self.encode(each.pixels, each.seconds) for each in inputs],
            [each.question for each in inputs],
            prompts=rows,
            max_tokens=max_tokens,
            generator=generator,
        )
        return tokens

    def splice(
        self,
        input_ids: Tensor,
        visual: Sequence[VisualTokens],
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        padding_side: PaddingSide = "right",
    ) -> SplicedPrompts:
        """The prompts as the language model takes them, visual tokens in their places."""
        return splice(
            input_ids,
            self.get_input_embeddings(),
            [tokens.tokens for tokens in visual],
            self.placeholders,
            attention_mask=attention_mask,
            labels=labels,
            padding_side=padding_side,
        )

    @property
    def placeholders(self) -> tuple[int, int]:
        return self.config.image_token_id, self.config.video_token_id

    @property
    def image_size(self) -> int:
        return self.config.image_size

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.language_model.get_output_embeddings()
        return head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights that a checkpoint lacks; transformers calls it for each module."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, FrameSelector | SpatialSampler):
            init.normal_(module.queries, std=0.02)
        elif isinstance(self.config.vision_config, EvaVisionConfig):
            init_eva(module)

    def _is_placeholder(self, input_ids: Tensor) -> Tensor:
        return torch.isin(input_ids, torch.tensor(self.placeholders, device=input_ids.device))

    def _check_continues_nothing(self, cache: Any, kwargs: dict[str, Any]) -> None:
        if cache is not None and cache.get_seq_length():
            raise ValueError(
                f"past_key_values: got {cache.get_seq_length()} tokens, "
                "wanted none before input_ids with placeholders"
            )
        if kwargs.pop("position_ids", None) is not None:
            raise ValueError(
                "position_ids: got a tensor, wanted None, as spliced prompts are numbered anew"
            )


def _positions(attention_mask: Tensor, length: int) -> Tensor:
    """(B, length) positions of the last columns, counting each row's tokens from 0."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)[:, -length:]


def _padding_side(attention_mask: Tensor | None) -> PaddingSide:
    padded_left = attention_mask is not None and not bool(attention_mask[:, 0].all())
    return "left" if padded_left else "right"
