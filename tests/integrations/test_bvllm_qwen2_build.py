"""A new model from published parts, and the reader of published EVA weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from bvllm_adapters.weights.eva import resized_positions
from bvllm_qwen2 import BvllmQwen2ForConditionalGeneration, EvaVisionConfig, build
from bvllm_qwen2.tiny import tiny_tokenizer
from bvllm_qwen2.weights import load_eva, read_state_dict

EVA = EvaVisionConfig(
    image_size=28,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
)
QFORMER: dict[str, Any] = {
    "qformer_width": 32,
    "qformer_layers": 2,
    "qformer_heads": 4,
    "max_tokens": 16,
}


def published() -> dict[str, Tensor]:
    """A state dict in the layout of eva_vit_g.pth: 3 blocks of which 2 are used."""
    torch.manual_seed(0)
    width, inner = 8, 12
    weights = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, 5, width),
        "patch_embed.proj.weight": torch.randn(width, 3, 14, 14),
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
        "head.weight": torch.randn(4, width),
        "head.bias": torch.randn(4),
    }
    for i in range(3):
        block = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.q_bias": (width,),
            "attn.v_bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (inner, width),
            "mlp.fc1.bias": (inner,),
            "mlp.fc2.weight": (width, inner),
            "mlp.fc2.bias": (width,),
        }
        weights |= {f"blocks.{i}.{name}": torch.randn(shape) for name, shape in block.items()}
    return weights


LEFT_OUT = ("head.", "norm.", "blocks.2.")


def saved(weights: dict[str, Tensor], folder: Path) -> Path:
    file = folder / "eva.pth"
    torch.save(weights, file)
    return file


def test_published_eva_weights_fit(tmp_path: Path) -> None:
    weights = published()
    eva = load_eva(saved(weights, tmp_path), EVA)
    used = {name for name in weights if not name.startswith(LEFT_OUT)}
    state = eva.state_dict()
    assert set(state) == used
    assert all(torch.equal(state[name], weights[name]) for name in used)
    assert not any(tensor.is_meta for tensor in (*eva.parameters(), *eva.buffers()))
    assert not any(bool(buffer.any()) for buffer in eva.buffers())


def test_wrappings_and_prefixes_are_found(tmp_path: Path) -> None:
    weights = published()
    expected = load_eva(saved(weights, tmp_path), EVA).state_dict()
    prefixed = {f"visual_encoder.{name}": value for name, value in weights.items()}
    prefixed["ln_vision.weight"] = torch.ones(8)
    whole = tmp_path / "whole.pth"
    torch.save({"model": prefixed, "epoch": 3}, whole)
    tensors = tmp_path / "eva.safetensors"
    save_file(weights, tensors)
    for file in (whole, tensors):
        found = load_eva(file, EVA).state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_wrong_eva_weights_are_listed(tmp_path: Path) -> None:
    weights = published()
    weights["blocks.1.attn.k_bias"] = weights.pop("blocks.1.attn.q_bias")
    with pytest.raises(
        ValueError,
        match=r"1 missing: blocks\.1\.attn\.q_bias; 1 unexpected: blocks\.1\.attn\.k_bias",
    ):
        load_eva(saved(weights, tmp_path), EVA)
    weights = published()
    weights["blocks.0.mlp.fc1.bias"] = torch.zeros(13)
    with pytest.raises(ValueError, match=r"of another shape: .*fc1\.bias \(13,\), wanted \(12,\)"):
        load_eva(saved(weights, tmp_path), EVA)
    with pytest.raises(ValueError, match=r"got 0 keys .*proj.weight', wanted one EVA"):
        load_eva(saved({"a": torch.zeros(1)}, tmp_path), EVA)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, wanted named tensors"):
        read_state_dict(tmp_path / "list.pth")


def test_a_file_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()


def test_positions_are_interpolated_for_another_size(tmp_path: Path) -> None:
    # A plane stays nearly a plane wherever the edges do not reach.
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([rows, columns], dim=-1).reshape(1, 64, 2)
    positions = torch.cat([torch.full((1, 1, 2), 9.0), grid], dim=1)
    resized = resized_positions(positions, 1 + 16 * 16)
    assert resized.shape == (1, 257, 2)
    assert resized[0, 0].tolist() == [9, 9]
    middle = resized[0, 1:].reshape(16, 16, 2)[5:11, 5:11]
    expected = (torch.arange(5.0, 11.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(middle[:, 0, 0], expected, atol=0.06, rtol=0)
    torch.testing.assert_close(middle[0, :, 1], expected, atol=0.06, rtol=0)
    assert resized_positions(positions, 65) is positions

    larger = EvaVisionConfig(**{**EVA.to_diff_dict(), "image_size": 56})
    assert load_eva(saved(published(), tmp_path), larger).pos_embed.shape == (1, 17, 8)


def qwen2(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.max_new_tokens = 3
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SIZES: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 14,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tower(kind: str, folder: Path) -> Path:
    torch.manual_seed(1)
    widths: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12}
    if kind == "eva":
        return saved(published(), folder)
    if kind == "clip":
        CLIPVisionModel(CLIPVisionConfig(**SIZES, **widths)).save_pretrained(folder)
    elif kind == "whole clip":
        text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPConfig(text_config=text, vision_config={**SIZES, **widths})
        CLIPModel(config).save_pretrained(folder)
    else:
        SiglipVisionModel(SiglipVisionConfig(**SIZES, **widths)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["eva", "clip", "whole clip", "siglip"])
@torch.no_grad()
def test_parts_become_a_model(kind: str, noise: Any, tmp_path: Path) -> None:
    for name in ("llm", "tower"):
        (tmp_path / name).mkdir()
    llm, source = qwen2(tmp_path / "llm"), tower(kind, tmp_path / "tower")
    sizes: dict[str, Any] = {"eva": EVA} if kind == "eva" else {}
    model, processor = build(llm, source, num_frames=4, **QFORMER, **sizes)
    assert not model.training
    assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))
    assert model.config.balanced_tokenizer_config.num_frames == 4
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    expected = Qwen2ForCausalLM.from_pretrained(llm).state_dict()
    found = model.language_model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any(p.requires_grad for p in model.vision_tower.parameters())
    if kind == "whole clip":
        vision = CLIPModel.from_pretrained(source).vision_model.state_dict()
        state = {  # transformers 5.0 has one more level of names
            name.removeprefix("vision_model."): value
            for name, value in model.vision_tower.encoder.state_dict().items()
        }
        assert all(torch.equal(state[name], value) for name, value in vision.items())

    text = "<|im_start|>user\n<video>what is it?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=text, videos=noise["long"])
    new = model.generate(**inputs).shape[1] - inputs["input_ids"].shape[1]
    assert new <= 3  # the language model's own settings
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path / "model")
    loaded = BvllmQwen2ForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(**inputs).logits, logits)
    assert loaded.generation_config.max_new_tokens == 3


def test_a_model_and_its_tokenizer_do_as_well_as_a_folder(tmp_path: Path) -> None:
    file = saved(published(), tmp_path)
    llm = Qwen2ForCausalLM.from_pretrained(qwen2(tmp_path))
    with pytest.raises(ValueError, match="tokenizer: got None, wanted one with a language_model"):
        build(llm, file, eva=EVA)
    model, processor = build(
        llm, file, eva=EVA, tokenizer=tiny_tokenizer(), dtype=torch.bfloat16, **QFORMER
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.language_model is llm
    assert processor.max_question_tokens == 256


def test_other_towers_are_refused(tmp_path: Path) -> None:
    llm = qwen2(tmp_path)
    with pytest.raises(ValueError, match="vision_tower: got a qwen2, wanted a CLIP or SigLIP"):
        build(llm, llm)
    with pytest.raises(ValueError, match=r"vision_tower: got .* wanted a file of EVA weights"):
        build(llm, llm, eva=EVA)
