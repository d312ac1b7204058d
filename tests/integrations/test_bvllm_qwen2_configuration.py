"""The configuration: what it fills in, what it refuses, and that JSON keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPVisionConfig,
    LlamaConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from bvllm_adapters import BalancedTokenizer, BalancedTokenizerConfig
from bvllm_qwen2 import BvllmQwen2Config, BvllmQwen2ForConditionalGeneration, EvaVisionConfig

CONFIGS: dict[str, Any] = {
    "default": BvllmQwen2Config,
    "clip": lambda: BvllmQwen2Config(
        text_config=Qwen2Config(hidden_size=128, tie_word_embeddings=True),
        vision_config=CLIPVisionConfig(hidden_size=96, image_size=336, patch_size=14),
        balanced_tokenizer={"max_tokens": 512, "frame_feature": "max"},
        vision_select_layer=-1,
        vision_chunk_size=3,
        image_token_id=7,
        video_token_id=8,
        initializer_range=0.5,
    ),
    "siglip": lambda: BvllmQwen2Config(vision_config=SiglipVisionConfig()),
    "eva": lambda: BvllmQwen2Config(vision_config=EvaVisionConfig(image_size=336)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_json_keeps_everything(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is BvllmQwen2Config
    assert type(loaded.vision_config) is type(config.vision_config)
    expected = config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert loaded.to_dict() == expected
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert (again / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_sub_configs_come_as_dictionaries_too() -> None:
    config = BvllmQwen2Config(
        text_config={"hidden_size": 64}, vision_config={"model_type": "clip_vision_model"}
    )
    assert config.text_config.hidden_size == 64
    assert isinstance(config.vision_config, CLIPVisionConfig)
    assert (
        BvllmQwen2Config(vision_config={"num_hidden_layers": 2}).vision_config.hidden_size == 1408
    )


def test_widths_and_frame_feature_are_filled_in() -> None:
    config = BvllmQwen2Config(
        text_config=Qwen2Config(hidden_size=128), vision_config=SiglipVisionConfig(hidden_size=96)
    )
    tokenizer = config.balanced_tokenizer_config
    assert (tokenizer.vision_width, tokenizer.llm_width) == (96, 128)
    assert tokenizer.frame_feature == "mean"
    assert BvllmQwen2Config().balanced_tokenizer_config == BalancedTokenizerConfig()
    assert json.loads(json.dumps(config.balanced_tokenizer)) == tokenizer.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_config": LlamaConfig()}, "text_config: got 'llama', wanted 'qwen2'"),
        ({"text_config": {"model_type": "qwen3"}}, "text_config: got 'qwen3', wanted 'qwen2'"),
        ({"vision_config": CLIPConfig()}, "vision_config: got 'clip', wanted one of"),
        ({"vision_config": {"model_type": "vit"}}, "vision_config: got 'vit', wanted one of"),
        (
            {"vision_config": EvaVisionConfig(image_size=225)},
            "vision_config.image_size: got 225, wanted a multiple of patch_size=14",
        ),
        ({"vision_select_layer": -2}, "vision_select_layer: got -2, wanted None"),
        (
            {"vision_config": CLIPVisionConfig(), "vision_select_layer": 13},
            "vision_select_layer: got 13, wanted -13 to 12, as the tower has 12 layers",
        ),
        ({"vision_chunk_size": 0}, "vision_chunk_size: got 0, wanted an int >= 1"),
        ({"image_token_id": 151647}, "video_token_id: got 151647, wanted another"),
        (
            {"balanced_tokenizer": {"vision_width": 1024}},
            "balanced_tokenizer.vision_width: got 1024, wanted 1408 as the model's",
        ),
        (
            {"balanced_tokenizer": BalancedTokenizerConfig(llm_width=896)},
            "balanced_tokenizer.llm_width: got 896, wanted 3584 as the model's",
        ),
        ({"balanced_tokenizer": {"theta": 5}}, r"config: got unknown names \['theta'\]"),
        ({"balanced_tokenizer": {"max_tokens": 0}}, "max_tokens: got 0"),
        (
            {
                "vision_config": SiglipVisionConfig(),
                "balanced_tokenizer": {"frame_feature": "cls"},
            },
            "balanced_tokenizer.frame_feature: got 'cls', wanted 'mean' or 'max'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BvllmQwen2Config(**arguments)


def test_an_oblong_tower_is_refused() -> None:
    config = CLIPVisionConfig()
    config.image_size = [224, 112]
    with pytest.raises(TypeError, match=r"vision_config.image_size: got \[224, 112\]"):
        BvllmQwen2Config(vision_config=config)


def test_default_sizes_are_the_papers() -> None:
    """Counted without memory, against what the published parts have."""
    with torch.device("meta"):
        model = BvllmQwen2ForConditionalGeneration(BvllmQwen2Config())

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    tokenizer: Any = model.balanced_tokenizer
    selector, sampler = tokenizer.frame_selector, tokenizer.spatial_sampler
    assert count(model.vision_tower) == 985_894_528  # EVA-CLIP-g at 224, 39 blocks
    assert count(model.language_model) == 7_615_616_512  # Qwen2-7B
    # InstructBLIP's Q-Former has 185,660,160; the text half of its last feed-forward layer is left
    # out, as it cannot reach the queries.
    last_text_ffn = 4_723_968
    assert count(selector.qformer) == count(sampler.qformer) == 185_660_160 - last_text_ffn
    # The authors' code, counted live: 186.77 M to select. Here the frame features have a norm.
    norm = 2 * 1408
    assert count(selector) == 186_767_488 + norm - last_text_ffn
    assert count(tokenizer) == 378_614_656
    assert count(model) == 8_980_125_696
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == count(model) - count(model.vision_tower)
    buffers = {name for name, buffer in model.named_buffers() if "k_bias" in name}
    assert len(buffers) == 39


def test_the_authors_projection_has_their_size() -> None:
    """191.82 M to sample and project, less what cannot reach the queries."""
    config = BvllmQwen2Config(balanced_tokenizer={"projection": "linear"})
    with torch.device("meta"):
        tokenizer: Any = BalancedTokenizer(config.balanced_tokenizer_config)
    parts = (tokenizer.spatial_sampler, tokenizer.projection)
    assert sum(p.numel() for m in parts for p in m.parameters()) == 191_820_160 - 4_723_968
