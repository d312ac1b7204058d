"""The Q-Former against LAVIS's recorded outputs and transformers' InstructBlipQFormerModel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

from bvllm_adapters import QFormer

RECORDED = Path(__file__).parent / "data" / "qformer_parity"
TOLERANCE = 1e-5
HEADS = json.loads((RECORDED / "tiny.config.json").read_text())["num_attention_heads"]


def published():
    return load_file(RECORDED / "tiny.lavis_weights.safetensors")


@pytest.fixture
def qformer():
    return QFormer.from_lavis(published(), heads=HEADS).eval()


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDED / "tiny.io.safetensors")


@pytest.mark.parametrize(
    ("output", "text", "visual_mask"),
    [
        ("last_hidden_state", True, "in.encoder_attention_mask"),
        ("last_hidden_state", True, None),
        ("last_hidden_state_partial_encoder_mask", True, "in.encoder_attention_mask_partial"),
        ("last_hidden_state_no_text", False, None),
    ],
)
def test_recorded_outputs(qformer, recorded, output, text, visual_mask):
    queries = recorded["in.query_embeds"]
    count = queries.shape[1]
    out = qformer(
        queries,
        recorded["in.encoder_hidden_states"],
        recorded["in.input_ids"] if text else None,
        recorded["in.attention_mask"][:, count:] if text else None,
        recorded[visual_mask] if visual_mask else None,
    )
    assert (out - recorded[f"out.{output}"][:, :count]).abs().max() < TOLERANCE


def test_double_precision_agrees_further(qformer, recorded):
    """What is left in float32 is rounding, not another formula."""
    queries = recorded["in.query_embeds"].double()
    out = qformer.double()(
        queries,
        recorded["in.encoder_hidden_states"].double(),
        recorded["in.input_ids"],
        recorded["in.attention_mask"][:, queries.shape[1] :],
    )
    wanted = recorded["out.last_hidden_state_f64"][:, : queries.shape[1]]
    assert (out - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_agrees_with_transformers(frequency):
    torch.manual_seed(0)
    config = InstructBlipQFormerConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=40,
        cross_attention_frequency=frequency,
        encoder_hidden_size=20,
        pad_token_id=0,
    )
    theirs = InstructBlipQFormerModel(config).eval()
    for parameter in theirs.parameters():  # away from the initial zeros and ones
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    ours = QFormer.from_instructblip(theirs)
    whole = {f"qformer.{key}": value for key, value in theirs.state_dict().items()}
    again = QFormer.from_instructblip(whole | {"query_tokens": torch.zeros(1)}, heads=3)
    assert all(map(torch.equal, again.parameters(), ours.parameters()))
    queries, visual = torch.randn(3, 5, 24), torch.randn(3, 7, 20)
    ids, mask = torch.randint(1, 50, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    mask[0, 4:] = 0
    visual_mask = torch.ones(3, 7, dtype=torch.long)
    visual_mask[1, 2:] = 0
    with torch.no_grad():
        wanted = theirs(
            input_ids=ids,
            attention_mask=torch.cat([torch.ones(3, 5, dtype=torch.long), mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=visual,
            encoder_attention_mask=visual_mask,
        ).last_hidden_state[:, :5]
        assert (ours(queries, visual, ids, mask, visual_mask) - wanted).abs().max() < TOLERANCE


def test_sizes_are_read_from_the_shapes_under_any_prefix():
    weights = {f"model.vlm_att_encoder.{k}": v for k, v in published().items()}
    weights["model.layers.0.weight"] = torch.zeros(3)  # of the rest of the model
    qformer = QFormer.from_lavis(weights, heads=HEADS)
    assert (qformer.width, qformer.visual_width, len(qformer.layers)) == (48, 64, 4)
    assert [layer.cross_attention is not None for layer in qformer.layers] == [True, False] * 2
    assert all(parameter.requires_grad for parameter in qformer.parameters())


def test_two_from_one_file_share_nothing():
    weights = published()
    first, second = (QFormer.from_lavis(weights, heads=HEADS) for _ in range(2))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    assert torch.equal(weights["bert.embeddings.LayerNorm.weight"], second.norm.weight)
    assert not torch.equal(first.norm.weight, second.norm.weight)


def test_text_and_visual_tokens_matter(qformer, recorded):
    queries, visual = recorded["in.query_embeds"], recorded["in.encoder_hidden_states"]
    ids = recorded["in.input_ids"]
    out = qformer(queries, visual, ids)
    assert not torch.allclose(out, qformer(queries, visual, ids.flip(1)), atol=1e-2)
    assert not torch.allclose(out, qformer(queries, visual.flip(2), ids), atol=1e-2)


def test_no_text_is_an_empty_text(qformer, recorded):
    queries, visual = recorded["in.query_embeds"], recorded["in.encoder_hidden_states"]
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert torch.equal(qformer(queries, visual), qformer(queries, visual, empty))


def test_every_parameter_is_used(qformer, recorded):
    qformer(
        recorded["in.query_embeds"], recorded["in.encoder_hidden_states"], recorded["in.input_ids"]
    ).square().sum().backward()
    assert [name for name, p in qformer.named_parameters() if p.grad is None] == []


def small():
    return QFormer(
        width=8, heads=2, layers=2, ffn_width=8, visual_width=6,
        cross_attention_frequency=2, vocab_size=9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(2, 3, 7)}, r"queries: got shape \(2, 3, 7\), wanted \(B, Q, 8\)"),
        ({"visual": torch.zeros(1, 4, 6)}, r"visual: got shape \(1, 4, 6\), wanted \(2, N, 6\)"),
        ({"visual": torch.zeros(2, 0, 6)}, r"visual: got shape \(2, 0, 6\)"),
        ({"text_ids": torch.ones(2, 513).long()}, r"text_ids: got shape \(2, 513\).*up to 512"),
        ({"text_mask": torch.ones(2, 4)}, r"text_mask: got shape \(2, 4\), wanted \(2, 5\)"),
        ({"visual_mask": torch.ones(2, 5)}, r"visual_mask: got shape \(2, 5\), wanted \(2, 4\)"),
        ({"visual_mask": torch.zeros(2, 4)}, "visual_mask: got a row that hides everything"),
        ({"text_ids": None, "text_mask": torch.ones(2, 5)}, "text_mask: .*there is no text"),
    ],
)
def test_wrong_input_is_named(change, message):
    arguments = {
        "queries": torch.zeros(2, 3, 8),
        "visual": torch.zeros(2, 4, 6),
        "text_ids": torch.ones(2, 5).long(),
        "text_mask": None,
        "visual_mask": None,
    }
    with pytest.raises(ValueError, match=message):
        small()(**(arguments | change))


def test_wrong_weights_are_listed():
    weights = published()
    incomplete = {k: v for k, v in weights.items() if "layer.1.output_query.dense" not in k}
    with pytest.raises(ValueError, match=r"2 missing: layers\.1\.query_ffn\.output\."):
        QFormer.from_lavis(incomplete, heads=HEADS)
    with pytest.raises(ValueError, match=r"the key bert\.encoder\.layer\.0\.strange\.weight"):
        QFormer.from_lavis(
            weights | {"bert.encoder.layer.0.strange.weight": torch.zeros(1)}, heads=HEADS
        )
    with pytest.raises(ValueError, match="got 0 keys"):
        QFormer.from_lavis({}, heads=HEADS)
    with pytest.raises(ValueError, match="heads: got 5, wanted a divisor of the width 48"):
        QFormer.from_lavis(weights, heads=5)
    with pytest.raises(ValueError, match="heads: got None"):
        QFormer.from_instructblip({})
    shallow = {k: v for k, v in weights.items() if ".layer." not in k}
    with pytest.raises(ValueError, match="no layers that read visual tokens"):
        QFormer.from_lavis(shallow, heads=HEADS)
