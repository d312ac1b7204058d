"""save_pretrained and from_pretrained, the Auto classes, and weights that a checkpoint lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2Config,
    SiglipVisionConfig,
)

from bvllm_qwen2 import (
    HOST,
    BvllmQwen2Config,
    BvllmQwen2ForConditionalGeneration,
    BvllmQwen2Processor,
    EvaVisionConfig,
)

Model = BvllmQwen2ForConditionalGeneration
SIZES: dict[str, Any] = {
    "image_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def small(**settings: Any) -> Any:
    """A model with another tower than the tiny one."""
    torch.manual_seed(0)
    settings.setdefault(
        "vision_config", EvaVisionConfig(patch_size=16, intermediate_size=48, **SIZES)
    )
    text: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
    }
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, **settings.pop("text", {})}
    config = BvllmQwen2Config(
        text_config=Qwen2Config(**text),
        balanced_tokenizer={"qformer_width": 32, "qformer_layers": 1, "qformer_heads": 4},
        **settings,
        image_token_id=97,
        video_token_id=98,
    )
    return Model(config).train(False)


def small_inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    return {
        "input_ids": torch.tensor([[5, 98, 7, 8]]),
        "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
        "frame_counts": torch.tensor([3]),
        "question_ids": torch.tensor([[101, 2054, 102]]),
    }


def assert_same_state(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_a_folder_holds_model_and_processor(tiny_qwen2: Any, noise: Any, tmp_path: Path) -> None:
    model, processor = tiny_qwen2
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}
    inputs = processor(text="<|im_start|>user\n<video>what?<|im_end|>\n", videos=noise["long"])
    expected = model(**inputs).logits
    source: Any
    for source in (Model, AutoModelForImageTextToText):
        loaded, about = source.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is Model
        assert not any(about[kind] for kind in ("missing_keys", "unexpected_keys"))
        assert not loaded.training
        assert_same_state(loaded, model)
        assert torch.equal(loaded(**inputs).logits, expected)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is BvllmQwen2Processor
    words = AutoTokenizer.from_pretrained(tmp_path)
    assert words("a <video>")["input_ids"] == processor.tokenizer("a <video>")["input_ids"]
    assert_same_state(HOST.load(tmp_path, dtype=torch.float32), model)


def test_loading_leaves_the_tower_frozen_and_the_rest_trainable(
    tiny_qwen2: Any, tmp_path: Path
) -> None:
    tiny_qwen2[0].save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path).train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("vision_tower.")), name
    assert not any(module.training for module in model.vision_tower.modules())


@pytest.mark.parametrize("kind", ["eva", "siglip"])
@torch.no_grad()
def test_other_towers_are_saved_too(kind: str, tmp_path: Path) -> None:
    config = SiglipVisionConfig(patch_size=16, intermediate_size=48, **SIZES)
    model = small(**({"vision_config": config} if kind == "siglip" else {}))
    model.save_pretrained(tmp_path)
    loaded, about = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(about[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert_same_state(loaded, model)
    for (name, one), (_, other) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(loaded(**small_inputs()).logits, model(**small_inputs()).logits)


@torch.no_grad()
def test_half_precision(tiny_qwen2: Any, noise: Any, tmp_path: Path) -> None:
    model, processor = tiny_qwen2
    model.save_pretrained(tmp_path)
    half = Model.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    by_host: Any = HOST.load(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert by_host.dtype == torch.bfloat16
    assert by_host.language_model.config._attn_implementation == "eager"
    inputs = processor(text="<|im_start|>user\n<video>what?<|im_end|>\n", videos=noise["long"])
    out = half(**inputs)
    assert out.logits.dtype == torch.bfloat16
    assert out.visual_tokens[0].selection.weights.dtype == torch.float32
    length = inputs["input_ids"].shape[1]
    assert half.generate(**inputs, max_new_tokens=3, do_sample=False).shape == (1, length + 3)
    half.save_pretrained(tmp_path / "half")
    assert_same_state(Model.from_pretrained(tmp_path / "half", dtype=torch.bfloat16), half)


def test_what_a_checkpoint_lacks_is_initialised_and_the_rest_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = [
        "balanced_tokenizer.frame_selector.queries",
        "balanced_tokenizer.spatial_sampler.queries",
        "balanced_tokenizer.spatial_sampler.norm.weight",
        "balanced_tokenizer.frame_selector.projection.weight",
        "balanced_tokenizer.frame_selector.projection.bias",
        "balanced_tokenizer.frame_selector.qformer.word_embeddings.weight",
        "balanced_tokenizer.projection.0.weight",
        "vision_tower.encoder.cls_token",
        "vision_tower.encoder.pos_embed",
        "vision_tower.encoder.blocks.0.attn.q_bias",
        "language_model.model.embed_tokens.weight",
    ]
    for name in gone:
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, about = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert set(about["missing_keys"]) == set(gone)
    for name, value in loaded.state_dict().items():
        if name not in gone:
            assert bool((value == 7).all()), name
        elif name.endswith("norm.weight"):
            assert bool((value == 1).all()), name
        elif name.endswith("bias"):
            assert bool((value == 0).all()), name
        else:
            assert 0.01 < float(value.std()) < 0.03, name
    assert not any(bool(b.any()) for n, b in loaded.named_buffers() if n.endswith("k_bias"))
    embedding = loaded.balanced_tokenizer.frame_selector.qformer.word_embeddings
    assert not bool(embedding.weight[0].any())  # padding
    with pytest.raises(ValueError, match=r"keys do not fit the model: 11 missing"):
        HOST.load(tmp_path, dtype=torch.float32)


@torch.no_grad()
def test_a_tied_qwen2_stays_tied(tmp_path: Path) -> None:
    model = small(text={"tie_word_embeddings": True})
    model.save_pretrained(tmp_path)
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded, about = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    for each in (model, loaded):
        assert each.get_output_embeddings().weight is each.get_input_embeddings().weight
    assert torch.equal(loaded(**small_inputs()).logits, model(**small_inputs()).logits)
    untied = small()
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight


def test_words_can_be_added(tmp_path: Path) -> None:
    model = small()
    model.resize_token_embeddings(120)
    assert model.config.text_config.vocab_size == 120
    assert model(**small_inputs()).logits.shape[-1] == 120
    model.save_pretrained(tmp_path)
    assert_same_state(Model.from_pretrained(tmp_path), model)


def test_placeholders_need_no_embedding() -> None:
    model = small(text={"vocab_size": 50})
    assert model(**small_inputs()).logits.shape[-1] == 50
