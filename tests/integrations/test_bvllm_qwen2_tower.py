"""The vision towers: what they give, in chunks, and that they stay frozen."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, Qwen2Config, SiglipVisionConfig

from bvllm_qwen2.configuration import BvllmQwen2Config, EvaVisionConfig, TimmVisionConfig
from bvllm_qwen2.vision_tower import VisionTower

SIZES: dict[str, Any] = {
    "image_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TOWERS: dict[str, Any] = {
    "eva": EvaVisionConfig(patch_size=8, intermediate_size=48, **SIZES),
    "clip": CLIPVisionConfig(patch_size=8, intermediate_size=48, **SIZES),
    "siglip": SiglipVisionConfig(patch_size=8, intermediate_size=48, **SIZES),
    "timm": TimmVisionConfig(
        "xcit_nano_12_p8_224",
        image_size=32,
        hidden_size=32,
        model_args={"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 4},
    ),
}


def make(kind: str, **settings: Any) -> VisionTower:
    config = BvllmQwen2Config(
        text_config=Qwen2Config(hidden_size=32), vision_config=TOWERS[kind], **settings
    )
    torch.manual_seed(0)
    return VisionTower(config)


def pixels(frames: int = 5) -> Tensor:
    return torch.randn(frames, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", TOWERS)
def test_chunks_change_nothing(kind: str) -> None:
    feature = "mean" if kind == "siglip" else "cls"
    whole, parts = make(kind), make(kind, vision_chunk_size=2)
    for one, other in zip(whole(pixels(), feature), parts(pixels(), feature), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    cls, patches = whole(pixels(), feature)
    assert cls.shape == (5, 32)
    assert patches.shape == (5, 16, 32)


@pytest.mark.parametrize("kind", TOWERS)
def test_frames_do_not_see_each_other(kind: str) -> None:
    tower = make(kind)
    together = tower(pixels(), "mean")[1]
    torch.testing.assert_close(tower(pixels()[2:3], "mean")[1], together[2:3], atol=1e-5, rtol=0)
    assert not torch.allclose(together[2], together[3], atol=1e-2)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_frame_feature_may_be_pooled_over_patches(kind: str) -> None:
    tower = make(kind)
    mean, patches = tower(pixels(), "mean")
    torch.testing.assert_close(mean, patches.sum(dim=1) / 16)
    most, patches = tower(pixels(), "max")
    assert torch.equal(most, patches.max(dim=1).values)


def test_siglip_has_no_cls() -> None:
    with pytest.raises(ValueError, match="frame_feature: got 'cls', wanted 'mean' or 'max'"):
        make("siglip")(pixels())


@pytest.mark.parametrize("layer", [None, -1, 0])
def test_clip_is_read_at_the_chosen_layer(layer: int | None) -> None:
    tower: Any = make("clip", vision_select_layer=layer)
    states = tower.encoder(pixels(), output_hidden_states=True).hidden_states
    assert len(states) == 4
    wanted = states[-2 if layer is None else layer]
    cls, patches = tower(pixels())
    assert torch.equal(cls, wanted[:, 0])
    assert torch.equal(patches, wanted[:, 1:])


def test_eva_is_its_blocks_and_nothing_behind_them() -> None:
    """An EVA block by hand: pre-norm attention with biases for queries and values only."""
    tower: Any = make("eva")
    eva = tower.encoder
    with torch.no_grad():
        for parameter in eva.parameters():
            parameter.normal_(std=0.3)
        eva.pos_embed.normal_()
        x = torch.nn.functional.conv2d(
            pixels(), eva.patch_embed.proj.weight, eva.patch_embed.proj.bias, stride=8
        )
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([eva.cls_token.expand(5, -1, -1), x], dim=1) + eva.pos_embed
        for block in eva.blocks:
            attention = block.attn
            y = torch.nn.functional.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias, 1e-6)
            q, k, v = (y @ attention.qkv.weight.T).chunk(3, dim=-1)
            q, v = q + attention.q_bias, v + attention.v_bias
            q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in (q, k, v))
            y = torch.softmax(q @ k.transpose(2, 3) / 8**0.5, dim=-1) @ v
            x = x + attention.proj(y.transpose(1, 2).flatten(2))
            y = torch.nn.functional.layer_norm(x, (32,), block.norm2.weight, block.norm2.bias, 1e-6)
            x = x + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(y)))
    cls, patches = tower(pixels())
    torch.testing.assert_close(torch.cat([cls[:, None], patches], dim=1), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "width", "has_cls", "patches", "model_args"),
    [
        ("vit_tiny_patch16_224", 192, True, 4, {"img_size": 32, "depth": 1}),
        ("vit_base_patch16_dinov3", 768, True, 4, {"img_size": 32, "depth": 1}),  # 4 registers
        ("resnet10t", 512, False, 1, {}),  # a feature map
        ("swin_tiny_patch4_window7_224", 768, False, 1, {"img_size": 32, "window_size": 1}),
    ],
)
def test_any_model_of_timm_may_be_the_tower(
    architecture: str, width: int, has_cls: bool, patches: int, model_args: dict[str, Any]
) -> None:
    vision = TimmVisionConfig(
        architecture, image_size=32, hidden_size=width, has_cls=has_cls, model_args=model_args
    )
    config = BvllmQwen2Config(text_config=Qwen2Config(hidden_size=32), vision_config=vision)
    assert config.balanced_tokenizer_config.frame_feature == ("cls" if has_cls else "mean")
    tower = VisionTower(config)
    frame, each = tower(pixels(2), config.balanced_tokenizer_config.frame_feature)
    assert frame.shape == (2, width)
    assert each.shape == (2, patches, width)
    whole = tower.encoder.model.forward_features(pixels(2))
    if has_cls:
        assert torch.equal(frame, whole[:, 0])
        assert torch.equal(each, whole[:, -patches:])
    else:
        assert torch.allclose(each.flatten().sort()[0], whole.flatten().sort()[0])


@pytest.mark.parametrize(
    ("architecture", "last", "earlier"),
    [("resnet10t", 512, {1: 64, 2: 128}), ("swin_tiny_patch4_window7_224", 768, {0: 96})],
)
def test_earlier_maps_stand_beside_the_last(
    architecture: str, last: int, earlier: dict[int, int]
) -> None:
    settings: dict[str, Any] = {} if last == 512 else {"img_size": 64, "window_size": 1}
    width = last + sum(earlier.values())
    vision = TimmVisionConfig(
        architecture, image_size=64, hidden_size=width, has_cls=False, model_args=settings,
        earlier=tuple(earlier),
    )  # fmt: skip
    config = BvllmQwen2Config(text_config=Qwen2Config(hidden_size=32), vision_config=vision)
    assert BvllmQwen2Config(**config.to_dict()).vision_config.earlier == list(earlier)
    tower = VisionTower(config)
    seen = torch.rand(2, 3, 64, 64)
    patches = tower(seen, "mean")[1]
    assert patches.shape == (2, 4, width)
    tower.encoder.earlier = []
    assert torch.equal(patches[..., :last], tower(seen, "mean")[1])
    behind = patches[..., last:].split(list(earlier.values()), dim=2)
    assert all(torch.allclose(each.std(2, correction=0), torch.ones(2, 4), atol=1e-3)
               for each in behind)  # fmt: skip


@pytest.mark.parametrize("architecture", ["resnet10t", "vit_tiny_patch16_224"])
def test_stages_that_timm_does_not_give_are_refused(architecture: str) -> None:
    vision = TimmVisionConfig(architecture, hidden_size=512, has_cls=False, earlier=[5])
    count = {"resnet10t": 5, "vit_tiny_patch16_224": 0}[architecture]
    with pytest.raises(ValueError, match=rf"earlier: got \[5\], wanted some of the {count} stages"):
        VisionTower(BvllmQwen2Config(text_config=Qwen2Config(hidden_size=32), vision_config=vision))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 64}, "hidden_size: got 64, wanted 192 as vit_tiny_patch16_224 has"),
        ({"has_cls": False}, "has_cls: got False, wanted True as vit_tiny_patch16_224 has"),
    ],
)
def test_what_timm_does_not_give_is_refused(settings: dict[str, Any], message: str) -> None:
    sized = {"hidden_size": 192, **settings}
    vision = TimmVisionConfig("vit_tiny_patch16_224", model_args={"depth": 1}, **sized)
    with pytest.raises(ValueError, match=message):
        VisionTower(BvllmQwen2Config(text_config=Qwen2Config(hidden_size=32), vision_config=vision))


@pytest.mark.parametrize("kind", TOWERS)
def test_it_stays_frozen(kind: str) -> None:
    tower = torch.nn.ModuleList([make(kind)]).train()[0]
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    cls, patches = tower(pixels().requires_grad_(), "mean")
    assert not cls.requires_grad
    assert not patches.requires_grad


def test_half_precision_takes_float_pixels() -> None:
    cls, patches = make("clip").to(torch.bfloat16)(pixels())
    assert cls.dtype == patches.dtype == torch.bfloat16


def test_importing_the_host_does_not_import_timm() -> None:
    code = "import sys, bvllm_qwen2; sys.exit('timm' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
