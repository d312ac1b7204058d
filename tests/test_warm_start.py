"""Beginning with published weights: InstructBLIP's, those of the B-VLLM authors' code, and image
models' for a scout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from bvllm_adapters import BalancedTokenizer, BalancedTokenizerConfig, FrameFeatures
from bvllm_adapters.config import ScoutConfig
from bvllm_adapters.hosts.warm_start import from_bvllm, from_image_model, from_instructblip
from bvllm_adapters.weights.checkpoint import CheckpointError

RECORDED = Path(__file__).parent / "data" / "qformer_parity"
SIZES = json.loads((RECORDED / "tiny.config.json").read_text())
CONFIG = BalancedTokenizerConfig(
    num_frames=6,
    tokens_per_frame=8,
    vision_width=SIZES["encoder_width"],
    llm_width=32,
    qformer_width=SIZES["hidden_size"],
    qformer_layers=SIZES["num_hidden_layers"],
    qformer_heads=SIZES["num_attention_heads"],
    qformer_ffn_width=SIZES["intermediate_size"],
    cross_attention_frequency=SIZES["cross_attention_freq"],
    vocab_size=SIZES["vocab_size"],
)
QUERIES = torch.arange(8 * 48.0).view(1, 8, 48)
NORM = {"weight": torch.linspace(1, 2, 64), "bias": torch.linspace(-1, 0, 64)}


def qformer(prefix):
    state = load_file(RECORDED / "tiny.lavis_weights.safetensors")
    return {f"{prefix}{key[key.index('bert.') :]}": value for key, value in state.items()}


def lavis():
    head = {"Qformer.cls.predictions.bias": torch.zeros(9), "llm_proj.weight": torch.zeros(2, 2)}
    norm = {f"ln_vision.{kind}": value for kind, value in NORM.items()}
    return qformer("Qformer.") | norm | {"query_tokens": QUERIES} | head


def transformers_names():
    norm = {f"vision_model.post_layernorm.{kind}": value for kind, value in NORM.items()}
    own = {
        key.replace(".self.", ".attention.").replace("ngs.LayerNorm", "ngs.layernorm"): value
        for key, value in qformer("qformer.").items()
        if not key.endswith("position_ids")
    }
    own = {key.replace("qformer.bert.", "qformer."): value for key, value in own.items()}
    return own | norm | {"query_tokens": QUERIES, "language_model.x": torch.zeros(1)}


def fresh(**settings):
    torch.manual_seed(0)
    return BalancedTokenizer(replace(CONFIG, **settings)).eval()


@pytest.mark.parametrize("source", [lavis, transformers_names])
def test_instructblip_fills_both_sides(source):
    tokenizer = fresh()
    report = from_instructblip(tokenizer, source())
    recorded = load_file(RECORDED / "tiny.io.safetensors")
    for stage in (tokenizer.frame_selector, tokenizer.spatial_sampler):
        read = stage.qformer(
            recorded["in.query_embeds"],
            recorded["in.encoder_hidden_states"],
            recorded["in.input_ids"],
            recorded["in.attention_mask"][:, 8:],
        )
        wanted = recorded["out.last_hidden_state"][:, :8]
        torch.testing.assert_close(read, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(stage.norm.weight, NORM["weight"])
        assert torch.equal(stage.norm.bias, NORM["bias"])
        assert torch.equal(stage.queries, QUERIES[0, : len(stage.queries)])
    assert sorted(report.fresh) == [
        *(f"frame_selector.projection.{kind}" for kind in ("bias", "weight")),
        *(f"projection.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")),
    ]
    assert set(report.copied.values()) | set(report.ignored) == set(source())
    assert "6 fresh" in str(report)


def test_both_names_give_the_same():
    tokenizers = [fresh(), fresh()]
    for tokenizer, source in zip(tokenizers, (lavis, transformers_names), strict=True):
        from_instructblip(tokenizer, source())
    one, other = (tokenizer.state_dict() for tokenizer in tokenizers)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_a_norm_of_cls_its_side_takes_none():
    tokenizer = fresh(normalize_cls=False)
    report = from_instructblip(tokenizer, lavis())
    assert "frame_selector.norm.weight" not in report.copied
    assert torch.equal(tokenizer.spatial_sampler.norm.weight, NORM["weight"])


def test_the_published_file(tmp_path):
    """Its tensors lie under "model"; half precision fills a tokenizer of any dtype."""
    file = tmp_path / "instruct_blip_vicuna7b_trimmed.pth"
    torch.save({"model": {key: value.half() for key, value in lavis().items()}}, file)
    tokenizer = fresh()
    from_instructblip(tokenizer, file)
    assert tokenizer.dtype == torch.float32
    torch.testing.assert_close(tokenizer.spatial_sampler.norm.bias, NORM["bias"], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"query_tokens": None}, {}, r"got 0 keys 'query_tokens', wanted one"),
        ({"ln_vision.bias": None}, {}, r"got 0 keys 'ln_vision.bias', wanted one"),
        ({}, {"num_frames": 9}, r"query_tokens \(8, 48\), wanted \(9, 48\) as frame_selector"),
        ({}, {"vision_width": 66}, r"ln_vision.weight \(64,\), wanted \(66,\)"),
        ({}, {"qformer_layers": 5}, r"missing for \['frame_selector.qformer.layers.3.text_ffn"),
        ({}, {"qformer_layers": 3}, r"it lacks \['frame_selector.qformer.layers.2.text_ffn"),
        (
            {"Qformer.bert.encoder.layer.1.output.dense.bias": None},
            {},
            r"missing for \['frame_selector.qformer.layers.1.text_ffn.output.bias'",
        ),
    ],
)
def test_instructblip_that_does_not_fit(changes, settings, message):
    state = {key: value for key, value in (lavis() | changes).items() if value is not None}
    tokenizer = fresh(**settings)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        from_instructblip(tokenizer, state)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def authors(prefix="model."):
    """A checkpoint as the authors' trainer writes it, dead modules included."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for side in ("temporal", "spatial"):
        state |= qformer(f"vlm_att_encoder_{side}.")
        state[f"vlm_att_query_{side}"] = torch.randn(1, 32, 48, generator=generator)
        for name, shape in {
            "projector": (64, 48),
            "key_projector": (64, 64),
            "val_projector": (32, 64),
            "ln": (64,),
        }.items():
            state[f"vlm_att_{name}_{side}.weight"] = torch.randn(shape, generator=generator)
            state[f"vlm_att_{name}_{side}.bias"] = torch.randn(shape[0], generator=generator)
    state["mm_projector.sampler.0.weight"] = torch.zeros(3)
    return {f"{prefix}{key}": value for key, value in state.items()}


def test_the_authors_checkpoint():
    tokenizer, report = from_bvllm(authors(), heads=4)
    config, state = tokenizer.config, authors("")
    assert config == replace(
        CONFIG,
        num_frames=16,
        tokens_per_frame=32,
        max_tokens=576,
        temperature=0.5,
        merge_threshold=0.5,
        normalize_cls=False,
        evaluation="soft",
        projection="linear",
    )
    ours = tokenizer.state_dict()
    for name, key in {
        "frame_selector.projection.weight": "vlm_att_projector_temporal.weight",
        "spatial_sampler.norm.weight": "vlm_att_ln_temporal.weight",
        "projection.0.bias": "vlm_att_projector_spatial.bias",
        "projection.1.weight": "vlm_att_val_projector_spatial.weight",
        "spatial_sampler.qformer.layers.3.query_ffn.inner.weight": (
            "vlm_att_encoder_spatial.bert.encoder.layer.3.intermediate_query.dense.weight"
        ),
    }.items():
        assert torch.equal(ours[name], state[key]) and report.copied[name] == key
    assert torch.equal(ours["spatial_sampler.queries"], state["vlm_att_query_spatial"][0])
    assert torch.equal(ours["frame_selector.queries"], state["vlm_att_query_temporal"][0, :16])

    assert report.fresh == [] and not tokenizer.training
    dead = ("key_projector", "val_projector_temporal", "ln_spatial", "mm_projector")
    expected = {key for key in state if any(name in key for name in dead)}
    expected |= {key for key in state if ".encoder.layer.3.intermediate.dense" in key}
    expected |= {key for key in state if ".encoder.layer.3.output." in key}
    expected |= {key for key in state if "position_ids" in key}
    assert set(report.ignored) == expected

    video = FrameFeatures(torch.randn(20, 64), torch.randn(20, 9, 64))
    tokens = tokenizer([video], [torch.tensor([101, 5, 102])])[0]
    assert len(tokens) <= 576 and tokens.tokens.shape[1] == 32


@pytest.mark.parametrize("prefix", ["", "model.", "model.model.", "base_model.model.model."])
@pytest.mark.parametrize("file", ["mm_projector.bin", "non_lora_trainables.bin"])
def test_the_authors_prefixes_and_files(tmp_path, prefix, file):
    torch.save(authors(prefix), tmp_path / file)
    wanted = from_bvllm(authors(), heads=4)[0].state_dict()
    for source in (tmp_path, tmp_path / file):
        got = from_bvllm(source, heads=4)[0].state_dict()
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_settings_that_differ():
    tokenizer, _ = from_bvllm(authors(), heads=4, evaluation="sample", max_tokens=100)
    assert tokenizer.config.evaluation == "sample" and tokenizer.config.max_tokens == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vlm_att_query_spatial": None}, r"missing \['vlm_att_query_spatial'\]"),
        ({"model.vlm_att_ln_temporal.bias": None}, r"missing \['vlm_att_ln_temporal.bias'\]"),
        ({"model.vlm_att_bert_proj_temporal.bias": torch.zeros(1)}, r"unknown \['vlm_att_bert_pr"),
        (
            {"model.vlm_att_projector_temporal.weight": torch.zeros(64, 50)},
            r"vlm_att_projector_temporal.weight \(64, 50\), wanted \(64, 48\)",
        ),
        (
            {"model.vlm_att_encoder_spatial.bert.encoder.layer.2.output.dense.bias": None},
            r"missing for \['spatial_sampler.qformer.layers.2.text_ffn.output.bias'\]",
        ),
    ],
)
def test_an_authors_checkpoint_that_does_not_fit(changes, message):
    state = {key: value for key, value in (authors() | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        from_bvllm(state, heads=4)


def test_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"weights.pth: cannot be read"):
        from_bvllm(file)
    torch.save([1], file)
    with pytest.raises(CheckpointError, match=r"weights.pth: holds a list, wanted named tensors"):
        from_bvllm(file)
    with pytest.raises(CheckpointError, match=r"holds no weights"):
        from_bvllm(tmp_path)


SMALL_RESNET = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 8]}
RESNET = ScoutConfig(architecture="resnet18", image_size=32, width=8, model_args=SMALL_RESNET)
CLIP_SIZES = {
    "image_size": 24, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
CLIP = ScoutConfig(
    library="transformers", architecture="clip_vision_model", image_size=24, width=16,
    model_args=CLIP_SIZES,
)  # fmt: skip


def resnet():
    return timm.create_model("resnet18", num_classes=5, **SMALL_RESNET).eval()


def test_a_scout_begins_with_what_timm_publishes(tmp_path):
    """With a head for ImageNet's classes, of which a scout has no use."""
    published = resnet()
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    tokenizer = fresh(scout=RESNET)
    report = from_image_model(tokenizer, tmp_path)
    assert sorted(report.ignored) == ["fc.bias", "fc.weight"]
    assert not [name for name in report.fresh if name.startswith("scout.")]
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        wanted = published.forward_head(published.forward_features(pixels), pre_logits=True)
        assert torch.equal(tokenizer.scout(pixels), wanted)


def test_a_scout_begins_with_a_part_of_a_larger_model():
    """CLIP's vision model stands behind a prefix, beside a text model with names of its kind."""
    sizes = {"text_config": CLIP_SIZES | {"vocab_size": 9}, "vision_config": CLIP_SIZES}
    published = CLIPModel(CLIPConfig(**sizes, projection_dim=4)).eval()
    tokenizer = fresh(scout=CLIP)
    report = from_image_model(tokenizer, published)
    assert {name for name, _ in tokenizer.scout.named_parameters("scout")} <= set(report.copied)
    pixels = torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        wanted = published.vision_model(pixels).pooler_output
        assert torch.equal(tokenizer.scout.encoder(pixels).pooler_output, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None}, r"scout: missing \['layer1.0.conv1.weight'\]"),
        ({"bn1.running_var": None}, r"scout: missing \['bn1.running_var'\]"),
        ({"conv1.weight": torch.zeros(3)}, r"conv1.weight \(3,\), wanted \(64, 3, 7, 7\)"),
    ],
)
def test_weights_that_are_not_the_scouts_change_nothing(change, message):
    state = {k: v for k, v in (resnet().state_dict() | change).items() if v is not None}
    tokenizer = fresh(scout=RESNET)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        from_image_model(tokenizer, state)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


@pytest.mark.parametrize("scout", [None, ScoutConfig(image_size=32, width=SIZES["encoder_width"])])
def test_without_an_encoder_there_is_nothing_to_fill(scout):
    with pytest.raises(ValueError, match="tokenizer: got no scout with an encoder"):
        from_image_model(fresh(scout=scout), {})
