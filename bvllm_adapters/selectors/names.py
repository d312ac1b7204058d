"""Selectors that go by a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bvllm_adapters.selectors.blind import RandomSelector, UniformSelector
from bvllm_adapters.selectors.choosers import inverse_transform
from bvllm_adapters.selectors.coverage import CoverageSelector

# How each turns relevance (or, without a scout, novelty) into frames.
CHOOSING: dict[str, dict[str, Any]] = {
    "coverage": {},
    "k-center": {"novelty_seconds": None},
    "top-k": {"diversity": 0.0, "coverage": 0.0},
    "best-of-bins": {"diversity": 0.0, "coverage": 1.0},
    "inverse-transform": {"choose": inverse_transform},
}
BLIND: dict[str, Callable[[], nn.Module]] = {"uniform": UniformSelector, "random": RandomSelector}


def named_selector(name: str, **settings: Any) -> nn.Module:
    """The selector of this name.

    Args:
        name: "coverage"; "uniform" or "random"; to compare with, "k-center", "top-k",
            "best-of-bins" or "inverse-transform", by novelty.
        settings: of its class, such as by="tower", in place of the defaults.

    Raises:
        ValueError: there is none of that name; "relevance" needs a scout, so has to be made by
            `RelevanceSelector.from_pretrained`.
    """
    if name in BLIND:
        return BLIND[name](**settings)
    if name in CHOOSING:
        return CoverageSelector(**{**CHOOSING[name], **settings})
    hint = ""
    if name == "relevance":
        hint = "; relevance needs a scout: RelevanceSelector.from_pretrained(folder or hub id)"
    raise ValueError(f"selector: got {name!r}, wanted one of {[*CHOOSING, *BLIND]}{hint}")
