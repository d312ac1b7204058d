"""How bvllm_adapters handles VideoLLaMA2: our port of it and upstream's own model objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.context import asked
from bvllm_adapters.features import FrameFeatures, VisualTokens
from bvllm_adapters.hosts.generation import Replies, settled
from bvllm_adapters.hosts.host import OwnWay
from bvllm_adapters.hosts.language_model import bare_language_model
from bvllm_adapters.hosts.splice import placeholder_rows, splice
from bvllm_adapters.hosts.turns import special_tokens, turns_of
from bvllm_adapters.question import own_words, pad, without
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.hub import inside
from bvllm_adapters.weights.json_file import blamed
from bvllm_adapters.weights.towers import has_cls
from bvllm_videollama2.calls import Calls
from bvllm_videollama2.frame_features import frame_features, frames_of, look
from bvllm_videollama2.inputs import (
    PLACEHOLDERS,
    Visual,
    is_text_alone,
    used_images,
    with_visual_tokens,
)
from bvllm_videollama2.prompts import question_in, text_tokenizer
from bvllm_videollama2.published import PUBLISHED, QFORMER, parts

if TYPE_CHECKING:
    from bvllm_videollama2.preprocessing import Videollama2Processor
    from bvllm_videollama2.training import Videollama2Training


class Overrides(Calls):
    """Modifications while wrapped:
    - `prepare_inputs_labels_for_multimodal`: the tokenizer's tokens instead of the projector's.
    - `forward`, `generate` and `prepare_inputs_for_generation`: those of our port, which know the
      cache by its present name too, and pad batches of unequal length on the left.
    """

    def prepare_inputs_labels_for_multimodal(
        self: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Sequence[Visual] | None,
    ) -> Any:
        """Modifications:
        - The BalancedTokenizer makes the visual tokens, of frames at 1 fps, any number of them;
          an image is one frame. All visual inputs of a prompt share its budget.
        - The question is that of `bvllm_adapters.context.asking` or, outside of it, what the
          first user turn of the prompt says, never an answer.
        - Prompts without images, and padding on either side, come out as if run alone.

        Args and returns: as the model's own method of this name.
        """
        if self.get_vision_tower() is None or is_text_alone(input_ids, images):
            return input_ids, attention_mask, past_key_values, None, labels
        assert images is not None
        used = used_images(input_ids, attention_mask, len(images))
        rows = placeholder_rows(input_ids, PLACEHOLDERS, attention_mask)
        texts = {row: _question(self, input_ids, attention_mask, labels, row) for row in rows}
        videos = [frames_of(i, *images[i]) for i in used]
        tokens = self.balanced_tokenizer(
            [frame_features(self, video) for video in videos],
            [texts[row] for row in rows],
            prompts=rows,
        )
        attention_mask, embeds, labels = with_visual_tokens(
            input_ids,
            self.get_input_embeddings(),
            [video.tokens for video in tokens],
            attention_mask=attention_mask,
            labels=labels,
        )
        return None, attention_mask, past_key_values, embeds, labels


class Videollama2Host:
    """The host of the `Videollama2...ForCausalLM`; see `bvllm_adapters.hosts.Host`."""

    api = 3
    overrides: type = Overrides
    published = PUBLISHED
    parts = staticmethod(parts)

    def load(
        self, folder: Path, *, dtype: torch.dtype, base: str | Path | None = None, **options: Any
    ) -> Any:
        """A whole checkpoint, or a LoRA or projector folder with what it was trained on as `base`
        (by default, what its config says)."""
        from bvllm_videollama2.weights import load

        return load(folder, dtype=dtype, base=base, **options)

    def tiny(self, folder: Path, name: str) -> None:
        """See `bvllm_adapters.hosts.Host`."""
        from bvllm_videollama2.tiny import tiny_checkpoint

        family = name.removeprefix("Videollama2").removesuffix("ForCausalLM")
        tiny_checkpoint(folder, family=family)

    def processor(self, folder: Path) -> Videollama2Processor:
        from bvllm_videollama2.preprocessing import Videollama2Processor

        return Videollama2Processor.from_folder(folder)

    def training(self, processor: Videollama2Processor) -> Videollama2Training:
        """See `bvllm_adapters.training.host.HostTraining`."""
        from bvllm_videollama2.training import Videollama2Training

        return Videollama2Training(processor)

    def config(self, model: Any) -> BalancedTokenizerConfig:
        """The paper's settings in this model's widths.

        config.json's `mm_qformer_config` and `mm_qformer_vocab` give other Q-Formers and words.
        """
        tower = model.get_vision_tower()
        if tower is None:
            raise ValueError("model: got a language model alone, wanted one with a vision tower")
        given = getattr(model.config, "mm_qformer_config", None) or {}
        sizes = {ours: given[theirs] for theirs, ours in QFORMER.items() if theirs in given}
        words = getattr(model.config, "mm_qformer_vocab", None)
        if words is not None:
            file = Path(str(model.name_or_path)) / "config.json"
            sizes["vocabulary"] = own_words(inside(file, "mm_qformer_vocab", words))
        if sizes.get("vocabulary") is not None:
            sizes["vocab_size"] = len(sizes["vocabulary"])
        with blamed(f"{model.name_or_path or 'the model'}: config: mm_qformer_config"):
            return BalancedTokenizerConfig(
                vision_width=model.config.mm_hidden_size,
                llm_width=model.config.hidden_size,
                frame_feature="cls" if has_cls(tower.vision_tower) else "mean",
                **sizes,
            )

    def tower(self, model: Any) -> nn.Module:
        tower: nn.Module = model.get_vision_tower()
        return tower

    def pixels(
        self,
        processor: Videollama2Processor,
        frames: npt.NDArray[np.uint8],
        *,
        is_image: bool = False,
    ) -> Tensor:
        return processor.pixels(frames)

    def look(self, model: Any, pixels: Tensor) -> FrameFeatures:
        return FrameFeatures(*look(model, pixels))

    def own_way(self, model: Any) -> OwnWay:
        return OwnWay(
            "its own projector, on all frames",
            model.get_vision_tower(),
            lambda features, question: model.temporal_aggregator(features[None])[0],
        )

    def answers(
        self,
        model: Any,
        processor: Videollama2Processor,
        questions: Sequence[str],
        tokens: Sequence[VisualTokens],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        system: str | None = None,
        **generate: Any,
    ) -> Replies:
        """In upstream's prompt; greedy unless told otherwise."""
        embed = model.get_input_embeddings()
        prompts = self.prompt_ids(processor, questions, history=history, system=system)
        ids, mask = (part.to(device_of(embed)) for part in pad(prompts))
        spliced = splice(
            ids,
            embed,
            [video.tokens for video in tokens],
            PLACEHOLDERS,
            attention_mask=mask,
            padding_side="left",
        )
        settings = settled(
            model.generation_config, generate, prompt_length=ids.shape[1],
            tokenizer=processor.tokenizer, **processor.settings(model),
        )  # fmt: skip
        # Not an unwrapped object's own generate(): upstream's takes no embeddings.
        speaker = model if isinstance(model, Calls) else bare_language_model(model)
        new = speaker.generate(
            inputs_embeds=spliced.inputs_embeds,
            attention_mask=spliced.attention_mask,
            **settings,
        )
        return Replies.of(new, partial(processor.tokenizer.batch_decode, skip_special_tokens=True))

    def prompt_ids(
        self,
        processor: Videollama2Processor,
        questions: Sequence[str],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        system: str | None = None,
    ) -> list[Tensor]:
        """See `bvllm_adapters.hosts.Host`."""
        special = special_tokens(processor.tokenizer)
        begin = None if system is None else without(system, special)
        ids = []
        for i, question in enumerate(questions):
            *earlier, last = turns_of(question, None if history is None else history[i], special)
            pairs = list(zip(earlier[::2], earlier[1::2], strict=True))
            ids.append(processor.ids(processor.prompt(last, "video", pairs, begin), "video")[0])
        return ids

    def placeholders(self, model: Any) -> Sequence[int]:
        return tuple(PLACEHOLDERS)

    def language_model(self, model: Any) -> nn.Module:
        found: nn.Module = model
        return found

    def save_tokenizer(self, processor: Videollama2Processor, folder: Path) -> None:
        processor.tokenizer.save_pretrained(folder)


def _question(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None, row: int
) -> str:
    """What a prompt asks."""
    text = asked(row)
    if text is not None:
        return text
    return question_in(
        input_ids[row],
        _tokenizer_of(model),
        attention_mask=None if attention_mask is None else attention_mask[row],
        labels=None if labels is None else labels[row],
    )


def _tokenizer_of(model: Any) -> Any:
    folder = str(getattr(model, "name_or_path", "") or "")
    try:
        return text_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"name_or_path: got {folder!r} of the model, where no tokenizer is, so the question "
            "cannot be read from the prompt; wanted its checkpoint folder, or "
            "bvllm_adapters.context.asking(...) around the call"
        ) from error
