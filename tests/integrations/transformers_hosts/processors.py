"""Four real processors of transformers made offline, each beside a tiny model that fits it."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import transformers
from tiny import build, family
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PROCESSORS = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")

# How a user's messages become a prompt: the same for all but for what stands for an image or video.
TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' -%}VIDEO{%- elif part['type'] == 'image' -%}IMAGE
{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def processor(name: str) -> Any:
    """The processor of this family, with a tokenizer of bytes; skips as `family` does."""
    family(name)
    return _MAKERS[name]()


def model(name: str, seed: int = 0) -> Any:
    """A tiny model that fits it, with loud weights; one's own to change."""
    return copy.deepcopy(_model(name, seed))


def write(name: str, folder: Path, seed: int = 0) -> Path:
    """Both as files, as a checkpoint comes: for AutoProcessor and `from_pretrained`."""
    processor(name).save_pretrained(folder)
    _model(name, seed).save_pretrained(folder)
    return folder


def messages(frames: Any, question: str = "What happens?") -> list[dict[str, Any]]:
    """A user's turn about a clip: its frames (T, H, W, 3) of bytes, or a list of them."""
    content = [{"type": "video", "video": frames}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def read(path: Path, step: int = 1) -> tuple[Any, dict[str, Any]]:
    """Every `step`th frame of a clip, and the settings that tell a processor their times.

    Processors themselves read files by torchcodec alone, which is not always there.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [one.to_ndarray(format="rgb24") for one in container.decode(stream)]
        fps = float(stream.average_rate)
    height, width = frames[0].shape[:2]
    metadata = {
        "total_num_frames": len(frames),
        "fps": fps,
        "width": width,
        "height": height,
        "duration": len(frames) / fps,
        "frames_indices": list(range(0, len(frames), step)),
    }
    settings = {"do_sample_frames": False, "video_metadata": [[metadata]]}
    return np.stack(frames[::step]), settings


def prepare(processor: Any, messages: Any, **settings: Any) -> Any:
    """What `model.generate(**inputs)` takes, as the models' pages tell a user to make it.

    Args:
        settings: of the processor, as `read` gives them.
    """
    return processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=settings,
    )


def answer(model: Any, processor: Any, messages: Any, settings: Any = None, **generate: Any) -> str:
    """The user's own snippet, to the words of the answer: greedy, of 4 tokens if not said."""
    inputs = prepare(processor, messages, **(settings or {}))
    ids = model.generate(**inputs, **{"max_new_tokens": 4, "do_sample": False, **generate})
    new = ids[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0]


@cache
def _model(name: str, seed: int) -> Any:
    one, tokenizer = family(name), processor(name).tokenizer
    config = copy.deepcopy(one.config)
    for field, token in _TOKENS[name].items():
        config[field] = tokenizer.convert_tokens_to_ids(token)
    if "image_grid_pinpoints" in config:  # as its processor has them
        config["image_grid_pinpoints"] = [list(SIDES.values())]
    config["text_config"] |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": None,  # an answer is as long as it was asked to be
    }
    model = build(one.model_class, config, seed)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _tokenizer(*special: str, **named: str) -> Any:
    """Every byte a token, and these special ones after them."""
    vocabulary = {one: i for i, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        extra_special_tokens=named,
    )
    fast.add_tokens(["<|im_start|>", *special], special_tokens=True)
    return fast


def _template(video: str, image: str) -> str:
    return TEMPLATE.replace("VIDEO", video).replace("IMAGE", image)


QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
UNCAPPED = {"cap_pixels_per_frame": False}  # said, so that transformers does not warn
SIDES = {"height": 16, "width": 16}


def _qwen(name: str, video_processor: str, longest: int) -> Any:
    # At most 1,024 pixels a frame: 16 tokens a pair.
    image_size = {"shortest_edge": 256, "longest_edge": 1024}
    video_size = {"shortest_edge": 256, "longest_edge": longest}
    start, end, image, video = QWEN
    return getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(size=image_size, **PATCHES),
        tokenizer=_tokenizer(*QWEN),
        video_processor=getattr(transformers, video_processor)(
            size=video_size, **PATCHES, **UNCAPPED
        ),
        chat_template=_template(start + video + end, start + image + end),
    )


def _qwen2_5_vl() -> Any:
    return _qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", 1024)


def _qwen3_vl() -> Any:
    # The longest edge counts the pixels of all frames.
    return _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor", 8192)


def _llava_onevision() -> Any:
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=SIDES, image_grid_pinpoints=[[16, 16]]
        ),
        tokenizer=_tokenizer("<image>", "<video>"),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=SIDES),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_template("<video>\n", "<image>\n"),
    )


def _internvl() -> Any:
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=SIDES, crop_to_patches=False),
        tokenizer=_tokenizer(
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        video_processor=transformers.InternVLVideoProcessor(size=SIDES),
        image_seq_length=4,
        chat_template=_template("<video>\n", "<IMG_CONTEXT>\n"),
    )


_MAKERS = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
}
_QWEN_TOKENS = dict(
    zip(
        ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
        QWEN,
        strict=True,
    )
)
_TOKENS = {
    "qwen2_5_vl": _QWEN_TOKENS,
    "qwen3_vl": _QWEN_TOKENS,
    "llava_onevision": {"image_token_index": "<image>", "video_token_index": "<video>"},
    "internvl": {"image_token_id": "<IMG_CONTEXT>"},
}
