"""With a transformers that has no way in for visual tokens these hosts say so, and they alone."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import tiny
import transformers
from transformers import Qwen2_5_VLForConditionalGeneration

import bvllm_adapters as bvllm

MODULES = ("arguments", "as_given", "budget", "calls", "prompt_text", "shim", "splice")


def bare() -> Any:
    """A tiny Qwen2.5-VL, which every version that is served has."""
    row: Any = copy.deepcopy(tiny.INDEX["qwen2_5_vl"])
    config = {**row["config"], "model_type": row["model_type"]}
    return tiny.build(Qwen2_5_VLForConditionalGeneration, config)


@pytest.mark.parametrize("module", MODULES)
def test_importing_needs_no_new_version(module: str) -> None:
    assert importlib.import_module(f"bvllm_transformers.{module}")


def test_below_the_seam_the_version_is_named() -> None:
    if tiny.available("qwen2_5_vl"):
        pytest.skip(f"transformers {transformers.__version__} has the seam")
    model = bare()
    with pytest.raises(bvllm.HostError, match=r"needs transformers >= 5\.18 .*, this is 5\."):
        bvllm.wrap(model, host="bvllm_transformers:HOST", max_tokens=7)
    assert type(model) is Qwen2_5_VLForConditionalGeneration


def test_a_class_without_the_seam_is_refused_by_any_version() -> None:
    class Without(Qwen2_5_VLForConditionalGeneration):
        def forward(self, input_ids: Any = None) -> None:  # type: ignore[override]
            raise AssertionError

    model = bare()
    model.__class__ = Without
    wanted = f"a Without needs transformers >= 5.18 .*, this is {transformers.__version__}"
    with pytest.raises(bvllm.HostError, match=wanted):
        bvllm.wrap(model, host="bvllm_transformers:HOST", max_tokens=7)
    assert not hasattr(model, "balanced_tokenizer")
