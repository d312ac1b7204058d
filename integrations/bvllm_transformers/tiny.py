"""Tiny models of some families with processors that fit them, random and made offline: to try."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerFast

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

QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_FIELDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
PATCHES: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
UNCAPPED: dict[str, Any] = {
    "cap_pixels_per_frame": False
}  # said, so that transformers does not warn
SIDES = {"height": 16, "width": 16}


def write_tiny_checkpoint(folder: Path, name: str, seed: int = 0) -> None:
    """A model of this class and its processor, as `save_pretrained` writes them.

    Raises:
        ValueError: for a class of which none is made here.
    """
    if name not in TINY:
        raise ValueError(
            f"tiny: got {name}, wanted one of {sorted(TINY)}, or the folder of a checkpoint"
        )
    processor = TINY[name].processor()
    tiny_model(name, processor.tokenizer, seed).save_pretrained(folder)
    processor.save_pretrained(folder)


def tiny_model(name: str, tokenizer: Any, seed: int = 0) -> Any:
    """A model of this class that reads what the tokenizer writes; weights from `seed`."""
    tiny = TINY[name]
    own = copy.deepcopy(tiny.config)
    for field, token in tiny.tokens.items():
        own[field] = tokenizer.convert_tokens_to_ids(token)
    own["text_config"] |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": None,  # an answer is as long as it was asked to be
    }
    model = build(getattr(transformers, name), own, seed)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build(model_class: Any, config: dict[str, Any], seed: int = 0) -> Any:
    """A model of this class with loud weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(AutoConfig.for_model(**copy.deepcopy(config)))
        make_loud(model)
    return model.eval()


@torch.no_grad()
def make_loud(model: nn.Module) -> None:
    """Draw every weight of two axes or more anew; norms and biases stay as they are.

    With weights as transformers draws them a wrong token moves logits less than rounding does.
    """
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim < 2:
                continue
            if isinstance(module, nn.Embedding):
                parameter.normal_(0, 1)
                continue
            convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            fan_in = parameter[0].numel() if convolution else parameter.shape[-1]
            parameter.normal_(0, 1.3 / math.sqrt(fan_in))


def byte_tokenizer(*special: str, **named: str) -> Any:
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
    """As literals of the template: a bare end of a line it would drop."""
    return TEMPLATE.replace("VIDEO", _literal(video)).replace("IMAGE", _literal(image))


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text)} }}}}"


def _qwen(name: str, video_processor: str, longest: int) -> Any:
    # At most 1,024 pixels a frame: 16 tokens a pair.
    image_size = {"shortest_edge": 256, "longest_edge": 1024}
    video_size = {"shortest_edge": 256, "longest_edge": longest}
    start, end, image, video = QWEN
    return getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(size=image_size, **PATCHES),
        tokenizer=byte_tokenizer(*QWEN),
        video_processor=getattr(transformers, video_processor)(
            size=video_size, **PATCHES, **UNCAPPED
        ),
        chat_template=_template(start + video + end, start + image + end),
    )


def qwen2_vl() -> Any:
    return _qwen("Qwen2VLProcessor", "Qwen2VLVideoProcessor", 1024)


def qwen2_5_vl() -> Any:
    return _qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", 1024)


def qwen3_vl() -> Any:
    # The longest edge counts the pixels of all frames.
    return _qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor", 8192)


def llava_onevision() -> Any:
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=SIDES, image_grid_pinpoints=[[16, 16]]
        ),
        tokenizer=byte_tokenizer("<image>", "<video>"),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=SIDES),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_template("<video>\n", "<image>\n"),
    )


def internvl() -> Any:
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=SIDES, crop_to_patches=False),
        tokenizer=byte_tokenizer(
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        video_processor=transformers.InternVLVideoProcessor(size=SIDES),
        image_seq_length=4,
        chat_template=_template("<video>\n", "<IMG_CONTEXT>\n"),
    )


_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
_GRID = {
    "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """How a tiny model of a class is made.

    Args:
        processor: makes it, tokenizer and all. config: of the model.
        tokens: field of the config -> the token whose id it is.
    """

    processor: Callable[[], Any]
    config: dict[str, Any]
    tokens: dict[str, str]


_QWEN_TOKENS = dict(zip(_QWEN_FIELDS, QWEN, strict=True))

TINY = {
    "Qwen2VLForConditionalGeneration": Tiny(
        qwen2_vl,
        {
            "model_type": "qwen2_vl",
            "text_config": {**_TEXT, "rope_parameters": _ROPE},
            "vision_config": {**_GRID, "depth": 2, "embed_dim": 32, "mlp_ratio": 2},
        },
        _QWEN_TOKENS,
    ),
    "Qwen2_5_VLForConditionalGeneration": Tiny(
        qwen2_5_vl,
        {
            "model_type": "qwen2_5_vl",
            "text_config": {**_TEXT, "rope_parameters": _ROPE},
            "vision_config": {
                **_GRID, "depth": 2, "intermediate_size": 64, "out_hidden_size": 32,
                "window_size": 16, "fullatt_block_indexes": [1],
            },
        },
        _QWEN_TOKENS,
    ),
    "Qwen3VLForConditionalGeneration": Tiny(
        qwen3_vl,
        {
            "model_type": "qwen3_vl",
            "text_config": {**_TEXT, "rope_parameters": {**_ROPE, "mrope_interleaved": True}},
            "vision_config": {
                **_GRID, "depth": 4, "intermediate_size": 64, "out_hidden_size": 32,
                "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2],
            },
        },
        _QWEN_TOKENS,
    ),
    "LlavaOnevisionForConditionalGeneration": Tiny(
        llava_onevision,
        {
            "model_type": "llava_onevision",
            "text_config": {**_TEXT, "model_type": "qwen2"},
            "vision_config": {
                **_TOWER, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4,
                "vision_use_head": False,
            },
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
            "image_grid_pinpoints": [[16, 16]],
        },
        {"image_token_index": "<image>", "video_token_index": "<video>"},
    ),
    "InternVLForConditionalGeneration": Tiny(
        internvl,
        {
            "model_type": "internvl",
            "text_config": {**_TEXT, "model_type": "qwen2"},
            "vision_config": {
                **_TOWER, "model_type": "internvl_vision", "image_size": [16, 16],
                "patch_size": [4, 4],
            },
        },
        {"image_token_id": "<IMG_CONTEXT>"},
    ),
}  # fmt: skip
