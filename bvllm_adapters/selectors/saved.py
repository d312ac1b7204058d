"""Selectors as a config names them, and the scout that goes into a folder beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.selectors.names import named_selector
from bvllm_adapters.weights.json_file import CheckpointError
from bvllm_adapters.weights.pretrained import Pretrained

FOLDER = "selector"  # of the scout's files, beside those of a tokenizer
BY_SCOUT = {"by": "scout"}  # of settings: there is such a folder
# What a file may say of a selector: numbers, and one word. No scout, which would be fetched.
_SETTINGS = {
    *("diversity", "coverage", "smooth_seconds", "novelty_seconds", "novelty", "by", "seed"),
}


def built_selector(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """A selector without training that needs no files.

    Raises:
        ValueError, TypeError: naming the setting, what came and what was wanted.
    """
    if name == "custom":
        raise ValueError(
            "selector: got 'custom', which is one's own, wanted it given once more (selector=, of "
            "a BalancedTokenizer frame_selector=)"
        )
    return named_selector(name, **_checked(settings))


def scout_of(selector: Any) -> Any:
    """The part of a selector that holds a scout and writes its files; None: it has none."""
    if hasattr(selector, "save_pretrained"):
        return selector
    inside = getattr(selector, "scout", None)
    return inside if hasattr(inside, "save_pretrained") else None


def saved_selector(folder: Path, name: str, settings: Mapping[str, Any]) -> nn.Module | None:
    """The selector whose scout lies in the folder `selector` of `folder`; None: it has no scout.

    Nothing is looked for anywhere else.

    Raises:
        CheckpointError: its files are not there, cannot be read, or do not fit one another.
    """
    if settings.get("by") != BY_SCOUT["by"]:
        return None
    own = {key: value for key, value in _checked(settings).items() if key != "by"}
    scout = folder / FOLDER
    if not (scout / "config.json").is_file():
        raise CheckpointError(f"{scout}: got no files of the selector's scout, wanted them there")
    from bvllm_adapters.selectors.relevance import RelevanceSelector  # imports transformers

    return named_selector(name, RelevanceSelector.from_pretrained(scout.absolute()), **own)


class PretrainedWithScout(Pretrained):
    """Mixin of a module that is built from its `config` and has a `frame_selector`, whose scout,
    a model of its own, lies in a folder of its own."""

    def parts_apart(self) -> dict[str, tuple[str, Any]]:
        scout = scout_of(getattr(self, "frame_selector", None))
        return {} if scout is None else {"frame_selector": (FOLDER, scout)}

    @classmethod
    def stages_apart(cls, folder: Path, config: BalancedTokenizerConfig) -> dict[str, nn.Module]:
        found = saved_selector(folder, config.selector, config.selector_settings)
        return {} if found is None else {"frame_selector": found}


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(settings) - _SETTINGS)
    if unknown:
        raise ValueError(f"selector_settings: got {unknown}, wanted some of {sorted(_SETTINGS)}")
    return dict(settings)
