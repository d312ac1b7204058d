from __future__ import annotations

import pytest
import torch

from bvllm_adapters.weights.eva import build_eva, eva_name, resized_positions


@pytest.mark.parametrize("ffn_width", [209, 96, 97])
def test_sizes_are_those_asked_for(ffn_width):
    """timm takes a ratio, which does not hit every width."""
    eva = build_eva(
        image_size=28, patch_size=14, width=48, depth=2, heads=4, ffn_width=ffn_width
    )  # fmt: skip
    assert eva.blocks[0].mlp.fc1.weight.shape == (ffn_width, 48)
    tokens = eva.forward_features(torch.randn(3, 3, 28, 28))
    assert tokens.shape == (3, 1 + 4, 48)


def test_leftovers_of_published_files():
    kept = ["cls_token", "pos_embed", "blocks.38.norm1.weight", "patch_embed.proj.bias", "odd.key"]
    assert [eva_name(name, 39) for name in kept] == kept
    left_out = [
        "blocks.39.norm1.weight",
        "head.weight",
        "norm.bias",
        "fc_norm.weight",
        "mask_token",
    ]
    assert [eva_name(name, 39) for name in left_out] == [None] * 5


def test_positions_that_are_no_square_are_left_to_the_loader():
    odd = torch.randn(1, 1 + 5, 8)
    assert resized_positions(odd, 1 + 9) is odd
    assert resized_positions(torch.randn(1, 1 + 4, 8), 1 + 9).shape == (1, 1 + 9, 8)
