"""Scouts: frames are chosen by a cheaper look at each, and the tower sees the chosen ones only."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import SMALL, TINY_HOSTS, native, pair_of, wrap_small
from torch import nn

import bvllm_adapters as bvllm
from bvllm_adapters import BalancedTokenizer, BalancedTokenizerConfig
from bvllm_adapters.config import ScoutConfig
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.scout import Scout
from bvllm_adapters.seeing.encoding import encode_pixels
from bvllm_adapters.weights.towers import check_pixels

BUNNY = Path(__file__).parents[1] / "examples" / "big_buck_bunny.mp4"
QUESTION = "Who is behind the large tree?"
TIMM = ScoutConfig(
    architecture="xcit_nano_12_p8_224",
    image_size=24,
    width=16,
    model_args={"img_size": 24, "embed_dim": 16, "depth": 1, "cls_attn_layers": 1, "num_heads": 2},
)
TRANSFORMERS = ScoutConfig(
    library="transformers",
    architecture="clip_vision_model",
    image_size=24,
    width=16,
    model_args={
        "image_size": 24, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2,
    },
)  # fmt: skip
CONV = ScoutConfig(
    library="transformers",
    architecture="resnet",
    image_size=40,
    width=16,
    model_args={"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
)
SCOUTS = {"timm": TIMM, "transformers": TRANSFORMERS, "without CLS": CONV}


@pytest.fixture(params=SCOUTS)
def config(request: pytest.FixtureRequest) -> ScoutConfig:
    torch.manual_seed(0)
    return SCOUTS[request.param]


def pixels(frames: int = 5, size: int = 32) -> torch.Tensor:
    return torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- the scout alone ------------------------------------------------------------------------------


def test_it_gives_a_feature_of_each_frame(config):
    scout = Scout(config)
    features = scout(pixels())
    assert features.shape == (5, 16)
    torch.testing.assert_close(scout(pixels()[2:3]), features[2:3], atol=1e-5, rtol=0)
    assert not torch.allclose(features[2], features[3], atol=1e-4)
    assert scout.half()(pixels()).dtype == torch.float16


def test_it_neither_trains_nor_keeps_a_graph(config):
    scout = Scout(config).train()
    assert not any(module.training for module in scout.modules())
    assert not any(weights.requires_grad for weights in scout.parameters())
    assert not scout(pixels().requires_grad_()).requires_grad


def test_without_an_encoder_it_is_the_tower_on_smaller_pixels():
    scout = Scout(ScoutConfig(image_size=8, width=12))
    seen = []

    def look(smaller):
        seen.append((smaller.shape, smaller.dtype))
        return smaller.mean(dim=(2, 3)).repeat(1, 4), smaller

    assert scout(pixels().half(), look).shape == (5, 12)
    assert seen == [((5, 3, 8, 8), torch.float16)]
    assert not list(scout.state_dict())
    with pytest.raises(ValueError, match="look: got None, wanted the tower"):
        scout(pixels())


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (TIMM, {"architecture": "vit_colossal"}, "scout.architecture: got 'vit_colossal', .* timm"),
        (
            TIMM,
            {"library": "transformers"},
            "scout.architecture: got 'xcit_nano_12_p8_224', wanted a model_type",
        ),
        (TIMM, {"width": 17}, "scout.width: got 17, wanted 16 as xcit_nano_12_p8_224 has"),
        (
            TRANSFORMERS,
            {"image_size": 32},
            r"scout.image_size, .*: got 32 and .*, wanted what clip_vision_model takes \(.*24",
        ),
        (
            TIMM,
            {"model_args": {"wings": 2}},
            r"scout.model_args: got 24 and \{'wings': 2\}, wanted what xcit_.* takes \(.*'wings'",
        ),
    ],
)
def test_encoders_that_cannot_be(config, change, message):
    with pytest.raises(ValueError, match=message):
        Scout(replace(config, **change))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image_size": 0}, ValueError, "scout.image_size: got 0, wanted an int >= 1"),
        ({"width": 0}, ValueError, "scout.width: got 0"),
        ({"library": "torchvision"}, ValueError, "scout.library: got 'torchvision', wanted one of"),
        ({"architecture": 3}, TypeError, "scout.architecture: got 3, wanted a name or None"),
        ({"model_args": [3]}, TypeError, r"scout.model_args: got \[3\], wanted names and values"),
        ({"architecture": None}, ValueError, "scout.model_args: got .*, wanted none without"),
    ],
)
def test_wrong_settings_are_named(change, error, message):
    with pytest.raises(error, match=message):
        replace(TIMM, **change)


@pytest.mark.parametrize(
    ("scout", "error", "message"),
    [
        ("clip", TypeError, "scout: got 'clip', wanted a ScoutConfig or None"),
        ({"image_size": 24, "breadth": 3}, ValueError, "scout: got .*'breadth'"),
        (
            ScoutConfig(image_size=24, width=16),
            ValueError,
            "scout.width: got 16, .*vision_width=32",
        ),
    ],
)
def test_a_tokenizer_says_what_is_wrong_with_its_scout(scout, error, message):
    with pytest.raises(error, match=message):
        BalancedTokenizerConfig(vision_width=32, scout=scout)


def test_its_settings_are_kept_as_json(tmp_path, config):
    settings = BalancedTokenizerConfig(scout=config)
    settings.save(tmp_path / "config.json")
    assert BalancedTokenizerConfig.load(tmp_path / "config.json") == settings
    assert settings.selection_width == 16


def test_a_tower_takes_its_size_and_smaller_whole_grids():
    for size in (14, 28, 56):
        check_pixels("pixels", torch.zeros(2, 3, size, size), 56, 14)
    for shape in ((2, 3, 70, 70), (2, 3, 20, 20), (2, 3, 28, 56), (2, 4, 56, 56), (3, 56, 56)):
        with pytest.raises(ValueError, match=r"pixels: got shape .*wanted \(k, 3, 56, 56\), or"):
            check_pixels("pixels", torch.zeros(shape), 56, 14)


# --- its weights ----------------------------------------------------------------------------------


def test_an_adapter_holds_its_weights(tmp_path, config):
    settings = BalancedTokenizerConfig(vision_width=32, llm_width=20, scout=config, **SMALL)
    tokenizer = BalancedTokenizer(settings).eval()
    pretrained = copy.deepcopy(tokenizer.scout.encoder)
    for weights in pretrained.parameters():
        nn.init.normal_(weights)
    before = tokenizer.scout(pixels())
    tokenizer.scout.encoder.load_state_dict(pretrained.state_dict(), strict=False)
    tokenizer.save_pretrained(tmp_path)
    loaded = BalancedTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.scout(pixels()), tokenizer.scout(pixels()))
    assert not torch.equal(loaded.scout(pixels()), before)
    assert not any(weights.requires_grad for weights in loaded.scout.parameters())
    assert {name: tuple(value.shape) for name, value in loaded.state_dict().items()} == {
        name: tuple(value.shape) for name, value in tokenizer.state_dict().items()
    }


def test_it_may_be_a_module_of_ones_own():
    class Mean(nn.Module):
        def forward(self, pixels, look=None):
            return pixels.mean(dim=(2, 3)).repeat(1, 4)

    looked = []

    def look(chunk):
        looked.append(len(chunk))
        return chunk.mean(dim=(2, 3)).repeat(1, 4), chunk.flatten(2).transpose(1, 2).repeat(1, 1, 4)

    settings = BalancedTokenizerConfig(vision_width=12, llm_width=20, **SMALL)
    tokenizer = BalancedTokenizer(settings, scout=Mean()).eval()
    with torch.inference_mode():
        (tokens,) = tokenizer([encode_pixels(look, pixels(9, 8), None, tokenizer)], [QUESTION])
    assert sum(looked) == len(tokens.selection) <= 4


def test_a_native_checkpoint_holds_it(tmp_path, config):
    model, _ = native(tmp_path)
    settings = replace(model.config.balanced_tokenizer_config, scout=config)
    model_config = copy.deepcopy(model.config)
    model_config.balanced_tokenizer = settings.to_dict()
    made = type(model)(model_config).eval()
    made.save_pretrained(tmp_path / "saved")
    loaded = bvllm.load(tmp_path / "saved")
    assert loaded.balanced_tokenizer.config == settings
    scouts = [model.balanced_tokenizer.scout for model in (loaded, made)]
    states = [scout.state_dict() for scout in scouts]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert not any(weight.requires_grad for weight in scouts[0].parameters())
    # Not to the last bit: on older torch it depends on where weights lie in memory.
    torch.testing.assert_close(*(scout(pixels(size=64)) for scout in scouts), atol=1e-6, rtol=0)


# --- in hosts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TINY_HOSTS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model, processor = request.param(tmp_path_factory.mktemp("host"))
    return copy.deepcopy(model), wrap_small(model, scout=TIMM), processor


def test_the_tower_sees_the_chosen_frames_only(host):
    _, model, processor = host
    opened = bvllm.open_video(model, BUNNY, processor=processor, fps=4.0)
    assert opened.tower_passes == 0 and opened.features.cls.shape == (len(opened), 16)
    seen = set()
    for question in (QUESTION, "", "What is it?"):
        answer = opened.ask(question, max_new_tokens=3)
        seen |= {frame.frame for frame in answer.trace.frames}
        assert answer.trace.num_tokens == min(9, 3 * len(answer.trace.frames))
        assert opened.tower_passes == len(seen) < len(opened)
    alone = bvllm.ask(
        model, BUNNY, QUESTION, processor=processor, fps=4.0, max_tokens=2, max_new_tokens=3
    )
    assert alone.trace.num_tokens == 2 and {"scout", "tower"} <= set(alone.trace.seconds)


def test_pixels_in_memory_are_seen_alike(host):
    _, model, processor = host
    served_by, video = host_of(model), bvllm.read_video(BUNNY)
    looked = []

    def look(chunk):
        looked.append(len(chunk))
        return pair_of(served_by, model)(chunk)

    seconds = torch.from_numpy(video.seconds)
    features = encode_pixels(
        look, served_by.pixels(processor, video.frames), seconds, model.balanced_tokenizer
    )
    assert not looked
    with torch.inference_mode():
        tokens = model.balanced_tokenizer([features], [QUESTION])[0]
    opened = bvllm.open_video(model, video, processor=processor)
    assert sum(looked) == len(tokens.selection) <= 4
    with torch.inference_mode():
        same = model.balanced_tokenizer([opened.features], [QUESTION])[0]
    torch.testing.assert_close(tokens.tokens, same.tokens, atol=1e-5, rtol=0)


def test_an_image_is_one_look(host):
    _, model, processor = host
    image = bvllm.read_video(BUNNY).frames[0]
    opened = bvllm.open_video(model, image, processor=processor)
    opened.ask("What is it?", max_new_tokens=3)
    assert opened.tower_passes == 1


def test_an_adapter_puts_it_into_a_fresh_copy(host, tmp_path):
    plain, model, processor = host
    bvllm.save_adapter(model, tmp_path)
    other = bvllm.wrap(copy.deepcopy(plain), adapter=tmp_path)
    told = []
    for one in (model, other):
        opened = bvllm.open_video(one, BUNNY, processor=processor, fps=2.0)
        with torch.inference_mode():
            tokens = one.balanced_tokenizer([opened.features], [QUESTION])[0]
        told.append((opened.features.cls, tokens.tokens))
    assert torch.equal(told[0][0], told[1][0]) and torch.equal(told[0][1], told[1][1])
    assert not any(name.startswith("scout") for name in bvllm.unwrap(other).state_dict())


def test_pixels_that_are_no_numbers_are_refused(host):
    _, model, _ = host
    frames = torch.full((3, 3, 64, 64), float("nan"))
    look = pair_of(host_of(model), model)
    with pytest.raises(ValueError, match="cls: got NaN or inf, wanted finite numbers"):
        encode_pixels(look, frames, None, model.balanced_tokenizer)


def test_training_reaches_the_selector_and_not_the_scout(host):
    _, model, processor = host
    model = copy.deepcopy(model).train()
    served_by, video = host_of(model), bvllm.read_video(BUNNY)
    features = encode_pixels(
        pair_of(served_by, model),
        served_by.pixels(processor, video.frames),
        torch.from_numpy(video.seconds),
        model.balanced_tokenizer,
    )
    tokens = model.balanced_tokenizer([features], [QUESTION])[0]
    tokens.tokens.square().sum().backward()
    selector, scout = model.balanced_tokenizer.frame_selector, model.balanced_tokenizer.scout
    assert float(selector.queries.grad.abs().max()) > 0
    assert all(weights.grad is None for weights in scout.parameters())
    assert not any(module.training for module in scout.modules())
