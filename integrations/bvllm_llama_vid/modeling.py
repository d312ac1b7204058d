"""LLaMA-VID on today's transformers: upstream's calling convention and names around a Llama.

Axes: B prompts, L ids, S length after splicing, T frames, N visual tokens, D hidden size.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel

from bvllm_llama_vid.calls import Calls, Prompts
from bvllm_llama_vid.configuration import LlavaConfig, question_vocabulary
from bvllm_llama_vid.context_attention import (
    add_context_attention,
    build_projector,
    context_and_content,
)
from bvllm_llama_vid.inputs import (
    VisualRow,
    is_placeholder,
    mask_of_words,
    splice_as_upstream,
    visual_rows,
)
from bvllm_llama_vid.vision_tower import VisionTower

Prepared = tuple[Tensor | None, Tensor | None, Any, Tensor | None, Tensor | None]


class LlavaAttLlamaModel(LlamaModel):
    """A LlamaModel that holds tower, projector and context attention under upstream's names."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config)
        if not hasattr(config, "mm_hidden_size"):
            config.mm_hidden_size = self.vision_tower.hidden_size
        if config.mm_hidden_size != self.vision_tower.hidden_size:
            raise ValueError(
                f"mm_hidden_size: got {config.mm_hidden_size}, "
                f"wanted {self.vision_tower.hidden_size}, the width of the vision tower"
            )
        self.mm_projector = build_projector(config)
        add_context_attention(self, config)

    def get_vision_tower(self) -> VisionTower:
        return self.vision_tower


class LlavaLlamaAttForCausalLM(Calls, LlamaForCausalLM):
    """Upstream's model: each frame is one token led by the question, and n pooled ones."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # or a plain LlamaModel would be built too
        self.model = LlavaAttLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_model(self) -> LlavaAttLlamaModel:
        return cast(LlavaAttLlamaModel, self.model)

    def get_vision_tower(self) -> VisionTower:
        return self.get_model().get_vision_tower()

    def update_prompt(self, prompts: Prompts | None = None) -> None:
        """Questions for calls that are given none, until the next update: upstream's way."""
        self.prompts = prompts

    def encode_images(
        self,
        images: Tensor,
        prompts: Prompts | None = None,
        image_counts: Sequence[int] | None = None,
        long_video: bool = False,
    ) -> list[Tensor]:
        """Tokens of each visual input for each of its prompts: (prompts, T * (1 + n), D).

        Args:
            images: the frames of all inputs in a row, (sum T, 3, S, S); if `long_video` their
                features, (sum T, P, C). prompts: of each input its questions.
            image_counts: T of each input; None: each frame is an input of its own.
        """
        features = images if long_video else self.get_vision_tower()(images)
        return self.vlm_attention(features, prompts, image_counts, long_video)

    def vlm_attention(
        self,
        image_features: Tensor,
        prompts: Prompts | None = None,
        image_counts: Sequence[int] | None = None,
        long_video: bool = False,
    ) -> list[Tensor]:
        """As `encode_images`, of the tower's features: (sum T, P or 1 + P, C)."""
        counts = [1] * len(image_features) if image_counts is None else list(image_counts)
        if prompts is None or len(prompts) != len(counts):
            got = None if prompts is None else len(prompts)
            raise ValueError(f"prompts: got {got}, wanted {len(counts)}, as many as visual inputs")
        tokens = []
        for i, (frames, asked) in enumerate(
            zip(image_features.split(counts), prompts, strict=True)
        ):
            if not asked:
                raise ValueError(f"prompts[{i}]: got no question, wanted one or more")
            both = context_and_content(self.get_model(), self.config, frames, list(asked))
            tokens.append(both.unflatten(0, (len(asked), len(frames))).flatten(1, 2))
        return tokens

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Any,
        prompts: Prompts | None = None,
    ) -> Prepared:
        """Visual tokens into the place of their placeholders.

        Args:
            input_ids: (B, L), -200 where a visual input stands. attention_mask, labels: (B, L).
            images, prompts: see `visual_rows`; no prompts: those of `update_prompt`.

        Returns:
            (None, mask (B, S), past_key_values, embeddings (B, S, D), labels (B, S)); without
            images or placeholders what came in, and no embeddings.
        """
        if images is None or not bool(is_placeholder(input_ids).any()):
            attention_mask = mask_of_words(input_ids, attention_mask, past_key_values, images)
            return input_ids, attention_mask, past_key_values, None, labels
        if prompts is None:
            prompts = getattr(self, "prompts", None)
            if prompts is None:
                raise ValueError(
                    "prompts: got None, wanted the questions, here or in update_prompt"
                )
        rows = visual_rows(input_ids, attention_mask, images, prompts, self.config.mm_hidden_size)
        embed: Any = self.get_input_embeddings()
        device = embed.weight.device
        input_ids = input_ids.to(device)
        attention_mask = None if attention_mask is None else attention_mask.to(device)
        labels = None if labels is None else labels.to(device)
        embeddings, mask, labels = splice_as_upstream(
            input_ids, embed, self._visual_tokens(rows), attention_mask, labels
        )
        if attention_mask is None and bool(mask.all()):
            return None, None, past_key_values, embeddings, labels
        return None, mask, past_key_values, embeddings, labels

    def _visual_tokens(self, rows: Sequence[VisualRow]) -> list[Tensor]:
        """(N, D) for each placeholder, in reading order; the tower sees all frames in one call."""
        tokens: dict[int, Tensor] = {}
        for as_features in (False, True):
            alike = [row for row in rows if row.is_features == as_features]
            for width in sorted({row.frames.shape[-2] for row in alike}):
                group = [row for row in alike if row.frames.shape[-2] == width]
                encoded = self.encode_images(
                    torch.cat([row.frames for row in group]),
                    [row.prompts or [] for row in group],
                    [len(row.frames) for row in group],
                    long_video=as_features,
                )
                tokens |= {row.row: found for row, found in zip(group, encoded, strict=True)}
        visual: list[Tensor] = []
        for row in rows:
            found = tokens[row.row]
            if row.placeholders <= len(found):
                visual += found[: row.placeholders]
            elif row.is_features and len(found) == 1 and row.placeholders == found.shape[1]:
                visual += found[0].split(1)  # a long video: each token has its placeholder
            else:
                raise ValueError(
                    f"prompts: got {len(found)} for row {row.row} with {row.placeholders} "
                    f"placeholders, wanted one for each, or features with one prompt and "
                    f"{found.shape[1]} placeholders"
                )
        return visual

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Modifications: a WordPiece vocabulary of the checkpoint's own goes with it."""
        super().save_pretrained(save_directory, **kwargs)
        source = question_vocabulary(self.config)
        if source is not None and source.is_file():
            target = Path(save_directory) / self.config.mm_qformer_vocab
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)
