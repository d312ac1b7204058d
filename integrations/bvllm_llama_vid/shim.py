"""How bvllm_adapters handles LLaMA-VID: our port of it, or a live object of upstream's class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
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
from bvllm_adapters.hosts.splice import splice
from bvllm_adapters.hosts.turns import turns_of
from bvllm_adapters.question import TAGS, own_words, pad, question_from_prompt, without
from bvllm_adapters.weights.device import device_of
from bvllm_llama_vid.calls import Calls
from bvllm_llama_vid.configuration import IMAGE_TOKEN_ID, question_vocabulary
from bvllm_llama_vid.encoding import features_of, look
from bvllm_llama_vid.inputs import VisualRow, is_placeholder, mask_of_words, visual_rows
from bvllm_llama_vid.preprocessing import LlamaVidProcessor, tokenizer_of
from bvllm_llama_vid.published import PUBLISHED, parts
from bvllm_llama_vid.sizes import live_text_sizes

if TYPE_CHECKING:
    from bvllm_llama_vid.training import LlamaVidTraining

# The first user turn of upstream's conversation formats: vicuna_v1 and llava_v1, or llama_2.
_USER_TURN = re.compile(r"USER:(.*?)ASSISTANT:|\[INST\](.*?)\[/INST\]", re.DOTALL)


class Overrides(Calls):
    """Modifications while wrapped:
    - `prepare_inputs_labels_for_multimodal`: the tokenizer's tokens instead of 1 + n a frame.
    - `forward`, `generate` and `prepare_inputs_for_generation`: those of our port, which need no
      images, know the cache by its present name too, and see each video once for all words.
    """

    balanced_tokenizer: Any
    config: Any

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Any,
        prompts: Sequence[Sequence[str]] | None = None,
    ) -> Any:
        """Modifications:
        - a placeholder becomes what the BalancedTokenizer makes of its frames, of any number, and
          not 1 + n tokens a frame; the placeholders of one row share its budget
        - the question is that of `asking`; else `prompts` or `update_prompt`, the i-th for the
          i-th placeholder; else the first user turn of the prompt's ids
        - a long video's features, which come without CLS, are selected by the mean of their
          patches, and its many placeholders, one for each of upstream's tokens, are contracted
          into the first
        - rows may differ in length, have no placeholder, and be padded on either side
        """
        model: Any = self
        if images is None or not bool(is_placeholder(input_ids).any()):
            attention_mask = mask_of_words(input_ids, attention_mask, past_key_values, images)
            return input_ids, attention_mask, past_key_values, None, labels
        if prompts is None:
            prompts = getattr(self, "prompts", None)
        embed = model.get_input_embeddings()
        device = device_of(embed)
        input_ids = input_ids.to(device)
        attention_mask = None if attention_mask is None else attention_mask.to(device)
        labels = None if labels is None else labels.to(device)
        rows = visual_rows(input_ids, attention_mask, images, prompts, self.config.mm_hidden_size)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.clone()
        left = bool((mask[:, 0] == 0).any())

        features, questions, prompt_of = [], [], []
        for row in rows:
            count = row.placeholders
            if is_expanded(row):
                places = is_placeholder(input_ids[row.row], mask[row.row]).nonzero().squeeze(1)
                mask[row.row, places[1:]] = 0
                count = 1
            frames = features_of(model, row.frames)
            for question in self._questions(row, count, input_ids, attention_mask, labels):
                features.append(frames)
                questions.append(question)
                prompt_of.append(row.row)
        visual = self.balanced_tokenizer(features, questions, prompts=prompt_of)
        spliced = splice(
            input_ids,
            embed,
            [each.tokens for each in visual],
            [IMAGE_TOKEN_ID],
            attention_mask=mask,
            labels=labels,
            padding_side="left" if left else "right",
        )
        mask = spliced.attention_mask
        unpadded = attention_mask is None and bool(mask.all())
        return (
            None,
            None if unpadded else mask,
            past_key_values,
            spliced.inputs_embeds,
            spliced.labels,
        )

    def _questions(
        self,
        row: VisualRow,
        count: int,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
    ) -> list[str]:
        """For each of a row's `count` placeholders."""
        said = asked(row.row)
        if said is not None:
            return [said] * count
        if row.prompts is None:
            mask, answers = (None if t is None else t[row.row] for t in (attention_mask, labels))
            return [read_question(self.config, input_ids[row.row], mask, answers)] * count
        if len(row.prompts) < count:
            raise ValueError(
                f"prompts: got {len(row.prompts)} for row {row.row} with {count} placeholders, "
                "wanted one for each"
            )
        return row.prompts[:count]


def words_of(model: Any) -> tuple[str, ...] | None:
    """The words of the checkpoint's own Q-Former, so that its weights can be a beginning; None:
    bert-base-uncased's."""
    own: Any = getattr(model.get_model(), "vlm_att_tokenlizer", None)
    if hasattr(own, "get_vocab"):  # upstream's object, whatever its config.json says
        words: dict[str, int] = own.get_vocab()
        return own_words(sorted(words, key=words.__getitem__))
    file = question_vocabulary(model.config)
    return None if file is None else own_words(file)


def is_expanded(row: VisualRow) -> bool:
    """Whether a row has the placeholders of upstream's long video, one for each token."""
    turns = len(row.prompts) if row.prompts is not None else 1
    return row.is_features and row.placeholders > turns


def read_question(
    config: Any, ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None
) -> str:
    """The first user turn of (L,) prompt ids, read with the tokenizer beside the checkpoint.

    Nothing behind it is read: not an answer, nor what was asked after one.
    """
    folder = Path(str(getattr(config, "_name_or_path", "") or ""))
    try:
        decode = tokenizer_of(folder).decode
    except (OSError, ValueError) as error:
        raise ValueError(
            "prompts: got None, and no tokenizer beside the checkpoint that could read the "
            "question from the ids; wanted prompts=, update_prompt() or asking()"
        ) from error
    text = question_from_prompt(ids, decode, attention_mask=attention_mask, labels=labels)
    turn = _USER_TURN.search(text)
    return text if turn is None else (turn[1] or turn[2] or "").strip()


class LlamaVidHost:
    """The host of `LlavaLlamaAttForCausalLM`; see `bvllm_adapters.hosts.Host`."""

    api = 3
    overrides: type = Overrides
    published = PUBLISHED
    parts = staticmethod(parts)

    def load(self, folder: Path, *, dtype: torch.dtype, **options: Any) -> nn.Module:
        """See `bvllm_llama_vid.weights.load`; the only option is its `base`."""
        from bvllm_llama_vid.weights import load

        return load(Path(folder), dtype=dtype, **options)

    def tiny(self, folder: Path, name: str) -> None:
        """See `bvllm_adapters.hosts.Host`."""
        from bvllm_llama_vid.tiny import write_tiny_checkpoint

        write_tiny_checkpoint(folder)

    def processor(self, folder: Path) -> LlamaVidProcessor:
        return LlamaVidProcessor.load(Path(folder))

    def training(self, processor: LlamaVidProcessor) -> LlamaVidTraining:
        """See `bvllm_adapters.training.host.HostTraining`."""
        from bvllm_llama_vid.training import LlamaVidTraining

        return LlamaVidTraining(processor)

    def config(self, model: Any) -> BalancedTokenizerConfig:
        sizes = live_text_sizes(model)
        words = words_of(model)
        vocabulary: dict[str, Any] = {}
        if words is not None:
            vocabulary = {"vocabulary": words, "vocab_size": len(words)}
        return BalancedTokenizerConfig(
            vision_width=model.config.mm_hidden_size,
            llm_width=model.config.hidden_size,
            qformer_width=sizes.hidden_size,
            qformer_layers=sizes.num_hidden_layers,
            qformer_heads=sizes.num_attention_heads,
            qformer_ffn_width=sizes.intermediate_size,
            cross_attention_frequency=sizes.cross_attention_freq,
            **vocabulary,
        )

    def tower(self, model: Any) -> nn.Module:
        tower: nn.Module = model.get_vision_tower()
        return tower

    def pixels(
        self, processor: LlamaVidProcessor, frames: npt.NDArray[np.uint8], *, is_image: bool = False
    ) -> Tensor:
        return processor.pixels(frames, pad=is_image and processor.pad_images)

    def look(self, model: Any, pixels: Tensor) -> FrameFeatures:
        return FrameFeatures(*look(model, pixels))

    def own_way(self, model: Any) -> OwnWay:
        def tokens(features: Tensor, question: str) -> Tensor:
            found: Tensor = model.vlm_attention(features, [[question]], [len(features)])[0][0]
            return found

        return OwnWay("its own tokens of each frame", model.get_vision_tower(), tokens)

    def answers(
        self,
        model: Any,
        processor: LlamaVidProcessor,
        questions: Sequence[str],
        tokens: Sequence[VisualTokens],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        system: str | None = None,
        **generate: Any,
    ) -> Replies:
        embed = model.get_input_embeddings()
        device = device_of(embed)
        ids, mask = pad(self.prompt_ids(processor, questions, history=history, system=system))
        spliced = splice(
            ids.to(device),
            embed,
            [video.tokens for video in tokens],
            [IMAGE_TOKEN_ID],
            attention_mask=mask.to(device),
            padding_side="left",
        )
        settings = settled(model.generation_config, generate, prompt_length=ids.shape[1])
        speaker = model if isinstance(model, Calls) else bare_language_model(model)
        new = speaker.generate(
            inputs_embeds=spliced.inputs_embeds,
            attention_mask=spliced.attention_mask,
            **settings,
        )
        return Replies.of(new, lambda rows: [processor.tokenizer.decode(row) for row in rows])

    def prompt_ids(
        self,
        processor: LlamaVidProcessor,
        questions: Sequence[str],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        system: str | None = None,
    ) -> list[Tensor]:
        """See `bvllm_adapters.hosts.Host`."""
        special = {*TAGS, *processor.tokenizer.special}
        if system is not None:
            processor = replace(processor, system=without(system, special))
        prompts = [
            processor.prompt(*turns_of(question, None if history is None else history[i], special))
            for i, question in enumerate(questions)
        ]
        return [processor.tokenizer(prompt) for prompt in prompts]

    def placeholders(self, model: Any) -> Sequence[int]:
        return (IMAGE_TOKEN_ID,)

    def language_model(self, model: Any) -> nn.Module:
        found: nn.Module = model
        return found

    def save_tokenizer(self, processor: LlamaVidProcessor, folder: Path) -> None:
        """transformers' own, made of the same pieces: it reads words otherwise, but writes them the
        same."""
        from transformers import LlamaTokenizer

        processor.tokenizer.save(folder)
        LlamaTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(folder)
