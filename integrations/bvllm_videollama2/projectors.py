"""Frame features -> visual tokens of the language model's width, as the host itself makes them.

Axes: B videos, T frames, P = g x g patches, C tower width, D hidden size, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from bvllm_adapters.weights.projectors import mlp, plain_projector


class STCConnector(nn.Module):
    """Convolutions within frames, one over space and time that samples, more, and an MLP.

    (B, T, P, C) -> (B, N, D) with N = T' g'^2, where T' and g' are T and g through `sampler`.

    Args:
        stride: by which the sampler divides time, height and width.
        depth: blocks within frames, before and after sampling; 0: none, for which C must be D.
        padding: of the sampling convolution, on all six sides; None: average pooling instead.
    """

    def __init__(
        self,
        width: int,
        hidden_size: int,
        *,
        stride: tuple[int, int, int] = (2, 2, 2),
        depth: int = 4,
        padding: int | None = 1,
    ) -> None:
        super().__init__()
        if depth == 0 and width != hidden_size:
            raise ValueError(
                f"mm_hidden_size: got {width}, wanted hidden_size={hidden_size} "
                "for a projector without convolutions within frames"
            )
        self.s1 = _stage(width, hidden_size, depth)
        pool = (
            nn.AvgPool3d(stride, stride)
            if padding is None
            else nn.Conv3d(hidden_size, hidden_size, stride, stride, padding)
        )
        self.sampler = nn.Sequential(pool, nn.SiLU())
        self.s2 = _stage(hidden_size, hidden_size, depth)
        self.readout = mlp(2, hidden_size, hidden_size)
        self.least_frames = stride[0] - 2 * (padding or 0)

    def forward(self, features: Tensor) -> Tensor:
        videos, frames, patches = features.shape[:3]
        side = isqrt(patches)
        if side * side != patches:
            raise ValueError(
                f"features: got {patches} tokens a frame, wanted a square of patches "
                "(mm_vision_select_feature='patch')"
            )
        if frames < self.least_frames:
            raise ValueError(f"features: got {frames} frames, wanted {self.least_frames} or more")
        hidden = self.s1(rearrange(features, "b t (h w) d -> (b t) d h w", h=side))
        hidden = self.sampler(rearrange(hidden, "(b t) d h w -> b d t h w", b=videos))
        hidden = self.s2(rearrange(hidden, "b d t h w -> (b t) d h w"))
        tokens: Tensor = self.readout(rearrange(hidden, "(b t) d h w -> b (t h w) d", b=videos))
        return tokens


def _stage(width: int, hidden_size: int, depth: int) -> nn.Module:
    if depth == 0:
        return nn.Identity()
    from timm.layers.norm import LayerNorm2d  # here, since importing timm takes seconds
    from timm.models.regnet import RegStage

    stage: nn.Module = RegStage(
        depth, width, hidden_size, 1, 1, act_layer=nn.SiLU, norm_layer=LayerNorm2d
    )
    return stage


_CONNECTORS: dict[str, Callable[[int, int], nn.Module]] = {
    "stc_connector": STCConnector,
    "stc_connector_v35": partial(STCConnector, padding=0),
    "stp_connector": partial(STCConnector, padding=None),
    "spatial_conv": partial(STCConnector, stride=(1, 2, 2), depth=0),
    "spatial_pool": partial(STCConnector, stride=(1, 2, 2), depth=0, padding=None),
}


def build_projector(config: Any) -> nn.Module:
    """The projector that a model's config names by `mm_projector_type`.

    Raises:
        ValueError: for a name that is not known, or widths that the projector cannot join.
    """
    name = projector_type(config)
    width, hidden_size = config.mm_hidden_size, config.hidden_size
    if name in _CONNECTORS:
        return _CONNECTORS[name](width, hidden_size)
    plain = plain_projector(name, width, hidden_size)
    if plain is not None:
        return plain
    raise ValueError(
        f"mm_projector_type: got {name!r}, wanted one of {['linear', 'mlpNx_gelu', *_CONNECTORS]}"
    )


def projector_type(config: Any) -> str:
    return str(getattr(config, "mm_projector_type", "linear"))


def sees_time(config: Any) -> bool:
    """Whether the projector takes (B, T, P, C); the others take (B, P, C), a mean over time."""
    return projector_type(config) in _CONNECTORS
