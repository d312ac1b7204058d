"""Projectors of the LLaVA family, which config.json names by `mm_projector_type`."""

from __future__ import annotations

import re

from torch import nn


def plain_projector(kind: str, width: int, hidden_size: int) -> nn.Module | None:
    """(..., width) -> (..., hidden_size): "linear" or "mlpNx_gelu"; None for any other kind."""
    if kind == "linear":
        return nn.Linear(width, hidden_size)
    depth = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    return mlp(int(depth[1]), width, hidden_size) if depth and int(depth[1]) else None


def mlp(depth: int, width: int, hidden_size: int) -> nn.Sequential:
    """`depth` linear layers with GELU between."""
    layers: list[nn.Module] = [nn.Linear(width, hidden_size)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    return nn.Sequential(*layers)
