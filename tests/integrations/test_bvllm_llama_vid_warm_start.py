"""A spatial sampler that begins as LLaMA-VID's context attention."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bvllm_adapters as bvllm
from bvllm_adapters import BalancedTokenizer, BalancedTokenizerConfig, FrameFeatures
from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_llama_vid import HOST
from bvllm_llama_vid.warm_start import from_llama_vid

DATA = Path(__file__).parents[1] / "data" / "llama_vid" / "eva_mean"


def tokenizer_like(model: Any, **settings: Any) -> BalancedTokenizer:
    fitting = HOST.config(model).to_dict()
    small = {"num_frames": 4, "tokens_per_frame": 8, "projection": "linear"}
    torch.manual_seed(0)
    return BalancedTokenizer(BalancedTokenizerConfig(**{**fitting, **small, **settings})).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return HOST.load(DATA, dtype=torch.float32)


@torch.no_grad()
def test_the_sampler_reads_as_the_context_attention_does(model: Any) -> None:
    tokenizer = tokenizer_like(model)
    report = from_llama_vid(tokenizer, model)
    inner = model.get_model()
    patches = torch.randn(3, 16, 48)
    ids = torch.tensor([[101, 7, 8, 102]]).clamp_max(442).expand(3, -1)
    sampled = tokenizer.spatial_sampler(patches, ids)
    query = inner.vlm_att_query.expand(3, -1, -1)
    wanted = inner.vlm_att_encoder.bert(query, inner.vlm_att_ln(patches), ids, None)
    torch.testing.assert_close(sampled, wanted, atol=1e-5, rtol=1e-5)
    projected = inner.vlm_att_val_projector(inner.vlm_att_projector(wanted))
    torch.testing.assert_close(tokenizer.projection(sampled), projected, atol=1e-4, rtol=1e-5)

    assert report.fresh and all(name.startswith("frame_selector.") for name in report.fresh)
    prefix = "model.vlm_att_encoder.bert.encoder.layer.3"
    assert set(report.ignored) == {
        "model.vlm_att_key_projector.weight",
        "model.vlm_att_key_projector.bias",
        "model.vlm_att_encoder.bert.embeddings.position_ids",
        *(f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"{prefix}.intermediate.dense.{kind}" for kind in ("weight", "bias")),
        *(f"{prefix}.output.dense.{kind}" for kind in ("weight", "bias")),
        *(f"{prefix}.output.LayerNorm.{kind}" for kind in ("weight", "bias")),
    }
    tokens = tokenizer([FrameFeatures(torch.randn(3, 48), patches)], [torch.tensor([101, 7, 102])])
    assert tokens[0].tokens.isfinite().all()


def test_another_projection_stays_fresh(model: Any) -> None:
    tokenizer = tokenizer_like(model, projection="mlp", tokens_per_frame=5)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    report = from_llama_vid(tokenizer, DATA)
    assert {"projection.0.weight", "projection.2.bias"} <= set(report.fresh)
    after = tokenizer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)
    assert not any(torch.equal(after[name], before[name]) for name in report.copied)
    query = model.get_model().vlm_att_query[0, :5]
    assert torch.equal(after["spatial_sampler.queries"], query)


def test_sources(model: Any, tmp_path: Path) -> None:
    """A model, its state dict, a folder, a projector file with a trainer's prefix."""
    state = {k: v for k, v in model.state_dict().items() if "vlm_att" in k or "mm_proj" in k}
    torch.save(
        {f"base_model.model.{k}": v for k, v in state.items()}, tmp_path / "mm_projector.bin"
    )
    filled = []
    for source in (model, state, DATA, tmp_path, tmp_path / "mm_projector.bin"):
        tokenizer = tokenizer_like(model)
        from_llama_vid(tokenizer, source)
        filled.append(tokenizer.state_dict())
    for other in filled[1:]:
        assert all(torch.equal(other[name], filled[0][name]) for name in other)


def test_sizes_that_differ(model: Any) -> None:
    tokenizer = tokenizer_like(model, tokens_per_frame=9)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"model.vlm_att_query \(8, 48\), wanted \(9, 48\)"):
        from_llama_vid(tokenizer, model)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight \(443, 48\), wanted \(500"):
        from_llama_vid(tokenizer_like(model, vocab_size=500, vocabulary=None), model)
    with pytest.raises(CheckpointError, match=r"missing for \['spatial_sampler.qformer.layers.3"):
        from_llama_vid(tokenizer_like(model, qformer_layers=5), model)


def test_checkpoints_that_cannot_be_used(model: Any, tmp_path: Path) -> None:
    state = load_file(DATA / "model.safetensors")
    key = "model.vlm_att_bert_proj.weight"
    with pytest.raises(CheckpointError, match=r"bert_proj: the checkpoint's Q-Former reads proj"):
        from_llama_vid(tokenizer_like(model), state | {key: torch.zeros(48, 40)})
    for missing, message in (
        ("model.vlm_att_query", r"model.vlm_att_query: missing"),
        ("model.vlm_att_projector.bias", r"LLaMA-VID: missing \['model.vlm_att_projector.bias'\]"),
    ):
        file = tmp_path / "model.safetensors"
        save_file({k: v for k, v in state.items() if k != missing}, file)
        with pytest.raises(CheckpointError, match=message):
            from_llama_vid(tokenizer_like(model), file)


@torch.no_grad()
def test_a_wrapped_model_begins_with_its_own(model: Any) -> None:
    """Its questions are read with the words of the checkpoint's own Q-Former."""
    model = copy.deepcopy(model)
    config = replace(HOST.config(model), num_frames=4, tokens_per_frame=8, max_tokens=10)
    assert config.vocab_size == 443
    bvllm.wrap(model, config=config, host="bvllm_llama_vid:HOST")
    report = from_llama_vid(model.balanced_tokenizer, model)
    assert report.copied["spatial_sampler.queries"] == "model.vlm_att_query"
    read, own = model.balanced_tokenizer.question_tokenizer, model.get_model().vlm_att_tokenlizer
    assert read("Who walks?").tolist() == own("Who walks?").tolist()
    ids = torch.tensor([[1, -200, 7]])
    out = model(input_ids=ids, images=[torch.randn(5, 3, 56, 56)], prompts=[["Who walks?"]])
    assert out.logits.shape[1] == 12
