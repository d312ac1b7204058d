"""Selectors that go by a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.selectors.blind import RandomSelector, UniformSelector
from bvllm_adapters.selectors.choosers import inverse_transform
from bvllm_adapters.selectors.coverage import CoverageSelector

# How each turns relevance (or, without a scout, novelty) into frames.
CHOOSING: dict[str, dict[str, Any]] = {
    "coverage": {},
    "relevance": {},
    "k-center": {"novelty_seconds": None},
    "top-k": {"diversity": 0.0, "coverage": 0.0},
    "best-of-bins": {"diversity": 0.0, "coverage": 1.0},
    "inverse-transform": {"choose": inverse_transform},
}
QUESTION_BLIND = ("coverage", "k-center")
BLIND: dict[str, Callable[[], nn.Module]] = {"uniform": UniformSelector, "random": RandomSelector}


def named_selector(
    name: str, scout: str | Path | nn.Module | None = None, **settings: Any
) -> nn.Module:
    """The selector of this name.

    Args:
        name: "coverage"; "relevance", which needs a scout; "uniform" or "random"; to compare with,
            "top-k", "best-of-bins" or "inverse-transform", by relevance if there is a scout, else
            by novelty, and "k-center".
        scout: folder or hub id of a CLIP or SigLIP, or a `RelevanceSelector` that has one.
        settings: of its class, such as by="tower", in place of the defaults.

    Raises:
        ValueError: there is none of that name, or it does not fit the scout. FileNotFoundError,
        CheckpointError: see `RelevanceSelector.from_pretrained`.
    """
    known = [*CHOOSING, *BLIND]
    if name not in known:
        raise ValueError(f"selector: got {name!r}, wanted one of {known}")
    if name in BLIND:
        if scout is not None:
            raise ValueError(f"scout: got {scout}, wanted None, as {name} looks at no frame")
        return BLIND[name](**settings)
    settings = {**CHOOSING[name], **settings}
    if scout is None:
        if name == "relevance":
            raise ValueError(
                "selector: got 'relevance' without a scout, wanted scout= with the folder or hub "
                "id of a CLIP or SigLIP, or RelevanceSelector.from_pretrained"
            )
        return CoverageSelector(**settings)
    from bvllm_adapters.selectors.relevance import RelevanceSelector  # imports transformers

    if name in QUESTION_BLIND:
        by = scout if isinstance(scout, nn.Module) else RelevanceSelector.from_pretrained(scout)
        return CoverageSelector(by=by, **settings)
    if isinstance(scout, RelevanceSelector):
        return RelevanceSelector(scout.files, **settings)
    return RelevanceSelector.from_pretrained(scout, **settings)  # type: ignore[arg-type]
