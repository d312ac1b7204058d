"""EVA-CLIP as BLIP-2 and its descendants have it: timm's Eva without head and final norm, and how
its published weights are named.

timm names its modules as the published file (eva_vit_g.pth) does.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What published files hold and this tower does not: classifier, final norms, the mask token of
# pretraining; and blocks behind the last one in use (BLIP-2 uses 39 of EVA-CLIP-g's 40).
_LEFT_OUT = re.compile(r"(head|norm|fc_norm|ln_vision)\.(weight|bias)|mask_token")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def build_eva(
    *, image_size: int, patch_size: int, width: int, depth: int, heads: int, ffn_width: int
) -> nn.Module:
    """An Eva whose `forward_features` is (T, 3, S, S) pixels -> (T, 1 + P, C) tokens, CLS first."""
    from timm.models.eva import Eva  # here, since importing it takes seconds and most need it not

    eva: nn.Module = Eva(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        # timm takes a ratio and rounds the product down: half a unit more survives the rounding.
        mlp_ratio=(ffn_width + 0.5) / width,
        num_classes=0,
        global_pool="",
        use_post_transformer_norm=False,
        dynamic_img_size=True,  # a scout may show it smaller frames
    )
    for block in eva.blocks:  # type: ignore[union-attr]
        block.attn.register_forward_pre_hook(_refuse_offloaded)
    return eva


def _refuse_offloaded(attention: Any, inputs: tuple[Tensor, ...]) -> None:
    """ValueError for weights that accelerate has offloaded: timm takes those of a layer without
    calling it, so that they would not be brought back, and the features be whatever lay in memory.
    """
    if attention.qkv.weight.is_meta and not inputs[0].is_meta:
        raise ValueError(
            "vision tower: got offloaded weights of an EVA, wanted them on a device (map the tower "
            "to one in device_map)"
        )


def without_key_bias(eva: nn.Module, dtype: torch.dtype) -> None:
    """Zeros for the bias of the keys, in the dtype of the weights that timm joins it to: EVA-CLIP
    has none, and no file holds it."""
    for module in eva.modules():
        bias = getattr(module, "k_bias", None)
        if isinstance(bias, Tensor) and not isinstance(bias, nn.Parameter):
            module.register_buffer("k_bias", torch.zeros(bias.shape, dtype=dtype), persistent=False)


def eva_name(published: str, depth: int) -> str | None:
    """The tower's name of a published key, without prefix; None: a known leftover."""
    block = _BLOCK.match(published)
    behind = block is not None and int(block[1]) >= depth
    return None if behind or _LEFT_OUT.fullmatch(published) else published


def resized_positions(positions: Tensor, count: int) -> Tensor:
    """(1, 1 + n * n, C) position embeddings, CLS first -> (1, count, C), bicubically.

    They come back as they are where n has no whole number, for the loader to refuse.
    """
    before, after = (round((tokens - 1) ** 0.5) for tokens in (positions.shape[1], count))
    if positions.shape[1] == count or before * before + 1 != positions.shape[1]:
        return positions
    grid = positions[:, 1:].float().unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions)], dim=1)
