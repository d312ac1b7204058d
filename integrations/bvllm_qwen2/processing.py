"""Texts, videos, images and questions -> tensors that the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from bvllm_adapters.question import QuestionTokenizer, pad
from bvllm_adapters.weights.image_processors import by_pil
from bvllm_qwen2.chat import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    PLACEHOLDER,
    VIDEO_TOKEN,
    as_strings,
    last_question,
    question_of,
    visuals_of,
)
from bvllm_qwen2.inputs import as_tensor
from bvllm_qwen2.options import Options, for_template
from bvllm_qwen2.sources import in_order, metadata_in_order, read_image


class Inputs(BatchFeature):
    """A batch whose times keep their precision, whatever the dtype that the model works in."""

    def to(self, *args: Any, **kwargs: Any) -> Inputs:
        """Modifications: `seconds` go along to the device; half precision would shift frames by a
        quarter of a second after one minute."""
        seconds = self.get("seconds")
        super().to(*args, **kwargs)
        if seconds is not None:
            self["seconds"] = seconds.to(self["input_ids"].device)
        return self


class BvllmQwen2Processor(ProcessorMixin):
    """A Qwen2 tokenizer and an image processor of the CLIP family in one.

    Args:
        image_processor: frames -> pixels of the tower's size. The PIL variant of the given class
            is used, so that pixels do not depend on whether torchvision is installed.
        tokenizer: of the language model; "<image>" and "<video>" are added to it if it lacks them.
        chat_template: None: Qwen2-Instruct's, with placeholders.
        max_question_tokens, question_vocabulary: of the `question_ids`, see
            `BalancedTokenizerConfig`; the model reads `question_text` by its own.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        max_question_tokens: int = 256,
        question_vocabulary: Sequence[str] | None = None,
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            _by_pil(image_processor), tokenizer, chat_template=chat_template or CHAT_TEMPLATE
        )
        self.max_question_tokens = max_question_tokens
        self.question_vocabulary = None if question_vocabulary is None else [*question_vocabulary]
        known = self.tokenizer.get_vocab()
        missing = [token for token in (IMAGE_TOKEN, VIDEO_TOKEN) if token not in known]
        self.tokenizer.add_tokens(missing, special_tokens=True)

    @property
    def image_token_id(self) -> int:
        token_id: int = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        return token_id

    @property
    def video_token_id(self) -> int:
        token_id: int = self.tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        return token_id

    def __call__(
        self,
        text: str | Sequence[str],
        videos: Any = None,
        images: Any = None,
        questions: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Inputs:
        """A batch of prompts with their visual inputs.

        Args:
            text: prompts, with "<video>" or "<image>" where the next of these belongs.
            videos, images: for each placeholder whatever `read_video` reads (or a `Video`), or
                uint8 tensors, channels first or last; as one list in reading order or as a list
                for each prompt.
            questions: what each prompt asks of its visual inputs, from which frames are chosen;
                None: the first user turn of the prompt, in Qwen2's chat format.
            kwargs: fps (1), num_frames and do_sample_frames, as `FramesWanted` has them;
                video_metadata, for each video that comes as frames the `fps` and `frames_indices`
                by which their times are known; padding (True), padding_side and others of the
                tokenizer. All may also come in transformers' groups, such as videos_kwargs.

        Returns:
            Tensors named as the arguments of the model's forward().

        Raises:
            ValueError: naming the argument, what came and what was wanted.
        """
        options = Options.of(kwargs)
        texts = [text] if isinstance(text, str) else list(text)
        kinds = [PLACEHOLDER.findall(prompt) for prompt in texts]
        asked = self._questions(questions, texts, kinds)

        encoded = self.tokenizer(texts, return_tensors="pt", **options.text)
        data = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        places = int(torch.isin(data["input_ids"], torch.tensor(self._placeholder_ids)).sum())
        if places != sum(map(len, kinds)):
            raise ValueError(
                f"text: got {sum(map(len, kinds))} placeholders, of which truncation "
                f"or the tokenizer left {places}, wanted all of them"
            )
        visuals = in_order("videos", videos, kinds, VIDEO_TOKEN)
        pictures = in_order("images", images, kinds, IMAGE_TOKEN)
        metadata = metadata_in_order(options.video_metadata, kinds)
        inputs = [
            options.frames.read(next(visuals), next(metadata))
            if kind == VIDEO_TOKEN
            else read_image(next(pictures))
            for prompt in kinds
            for kind in prompt
        ]
        if inputs:
            tokenize = QuestionTokenizer(self.max_question_tokens, self.question_vocabulary)
            ids, mask = pad([tokenize(question) for question in asked])
            data |= {
                "pixel_values": torch.cat([self.pixels(video.frames) for video in inputs]),
                "frame_counts": torch.tensor([len(video.frames) for video in inputs]),
                # Milliseconds of a day fit float32, and not every device has float64.
                "seconds": torch.cat([torch.from_numpy(v.seconds).float() for v in inputs]),
                "question_ids": ids,
                "question_mask": mask.long(),
                "question_text": as_tensor(asked),
            }
        return Inputs(data)

    def pixels(self, frames: np.ndarray[Any, Any]) -> Tensor:
        """(T, H, W, 3) uint8 frames -> (T, 3, S, S) float32 pixels."""
        pixels: Tensor = self.image_processor(
            list(frames), return_tensors="pt", input_data_format="channels_last"
        )["pixel_values"]
        return pixels

    def apply_chat_template(  # type: ignore[override]  # our options go by name
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Messages of one conversation, or of several, as text or as a batch for the model.

        Args:
            conversation: messages whose content is a string, or a list of {"type": "text",
                "text": ...} and {"type": "video", "video": ...} or {"type": "image", "image":
                ...}; instead of "video" and "image" also "path". In a list's texts a tag is text,
                and left out; templates that know nothing of lists render them too.
            add_generation_prompt, continue_final_message: as transformers has them. With the
                former an answer is waited for, and frames are chosen by what was asked last.
            tokenize: False: the text. True: what `__call__` gives, or with `return_dict=False`
                its input_ids alone.
            processor_kwargs, kwargs: of `__call__`, and variables of the template.

        Raises:
            TypeError, ValueError: for what neither `__call__` nor the template has a use for.
        """
        batched = not isinstance(conversation[0], Mapping)
        conversations = list(conversation) if batched else [conversation]
        template = self._template(chat_template)
        variables, options = for_template(template, {**(processor_kwargs or {}), **kwargs})
        plain = [as_strings(messages) for messages in conversations]
        texts = [
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
            for messages in plain
        ]
        if not tokenize:
            Options.of({name: one for name, one in options.items() if name != "questions"})
            return texts if batched else texts[0]
        if add_generation_prompt:
            options.setdefault("questions", [last_question(messages) for messages in plain])
        visuals = [visuals_of(messages) for messages in conversations]
        inputs = self(
            text=texts,
            videos=[found["video"] for found in visuals],
            images=[found["image"] for found in visuals],
            **options,
        )
        return inputs if return_dict else inputs["input_ids"]

    def _template(self, given: str | None) -> str:
        """The chat template of a name, if there are several; a given one, or our own."""
        own: Any = self.chat_template
        if isinstance(own, Mapping):
            found: str = own.get(given or "default", given)
            return found
        return given or own

    @property
    def model_input_names(self) -> list[str]:
        return [
            *("input_ids", "attention_mask", "pixel_values", "frame_counts", "seconds"),
            *("question_ids", "question_mask", "question_text"),
        ]

    @property
    def _placeholder_ids(self) -> list[int]:
        return [self.image_token_id, self.video_token_id]

    def _questions(
        self, given: str | Sequence[str | None] | None, texts: list[str], kinds: list[list[str]]
    ) -> list[str]:
        """The question to each visual input, in reading order."""
        if given is None:
            questions: Sequence[str | None] = [question_of(prompt) for prompt in texts]
        else:
            questions = [given] if isinstance(given, str) else given
        if len(questions) != len(texts):
            raise ValueError(f"questions: got {len(questions)}, wanted {len(texts)} as texts")
        asked = []
        for i, (question, prompt_kinds) in enumerate(zip(questions, kinds, strict=True)):
            if prompt_kinds and question is None:
                raise ValueError(
                    f"questions: got None, and text {i} has visual inputs but no user turn "
                    "(<|im_start|>user ... <|im_end|>) to read it from; wanted questions="
                )
            asked += [question or ""] * len(prompt_kinds)
        return asked


def image_processor_for(config: Any) -> Any:
    """The usual pixels of a tower, where it comes without an image processor of its own.

    Args:
        config: of an EVA, CLIP or SigLIP tower.

    EVA and SigLIP see the whole frame, squeezed to a square; CLIP its middle square.
    """
    size = config.image_size
    whole: dict[str, Any]
    square = {"height": size, "width": size}
    if config.model_type == "siglip_vision_model":
        half = [0.5, 0.5, 0.5]
        whole = {"size": square, "do_center_crop": False, "image_mean": half, "image_std": half}
    elif config.model_type == "clip_vision_model":
        whole = {"size": {"shortest_edge": size}}
    else:
        whole = {"size": square, "do_center_crop": False}
    return by_pil("CLIP")(crop_size=square, **whole)


def _by_pil(image_processor: Any) -> Any:
    """The same settings in the class that computes them with PIL, if the given one does not."""
    name = type(image_processor).__name__
    # transformers 5.0 had CLIPImageProcessorFast beside CLIPImageProcessor, later ones have
    # CLIPImageProcessor beside CLIPImageProcessorPil.
    for other in (f"{name}Pil", name.removesuffix("Fast")):
        by_pil = getattr(transformers, other, None)
        if by_pil is not None and by_pil is not type(image_processor):
            settings = image_processor.to_dict()
            settings.pop("image_processor_type", None)
            return by_pil(**settings)
    return image_processor
