"""Video models of transformers, tiny, and a prompt of each as its processor would shape it.

Configurations and prompts: tests/data/transformers_hosts. Weights are drawn here, and loud: with
those that transformers draws by itself a wrong token moves logits less than rounding does.
"""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from torch import Tensor

from bvllm_transformers.tiny import build

DATA = Path(__file__).parents[2] / "data" / "transformers_hosts"
INDEX: dict[str, dict[str, Any]] = json.loads((DATA / "index.json").read_text(encoding="utf-8"))
FAMILIES = sorted(INDEX)
Inputs = dict[str, Tensor]
# Before these versions their processors shaped another prompt, or answering with a video failed.
SINCE = {
    "cohere_compass": "5.20",
    "gemma4": "5.23",
    "gemma4_bidir": "5.23",
    "gemma4_unified": "5.23",
    "kimi_k25": "5.24",
    "minimax_m3_vl": "5.23",
    "nemotron_h_omni": "5.24",
}


@dataclass(frozen=True)
class Family:
    """One row of the table: a model class, what it is built of, and how its prompt is laid out."""

    name: str
    class_name: str
    model_type: str
    config: dict[str, Any]
    frame_of_placeholder: tuple[int, ...]  # -1: a placeholder of no frame

    @property
    def groups(self) -> int:
        """How many frames, or pairs, or whatever the tower takes as one, the prompt shows."""
        return max(self.frame_of_placeholder) + 1

    @property
    def model_class(self) -> Any:
        return getattr(transformers, self.class_name)

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """A model of one's own to change, in eval mode."""
        return copy.deepcopy(_model(self.name, seed)).to(dtype)

    def shared_model(self) -> Any:
        """The model of seed 0 that all tests share: whoever changes it takes `model()`."""
        return _model(self.name, 0)

    def inputs(self) -> Inputs:
        """The prompt: input_ids (1, L), attention_mask (1, L), pixels and what goes with them."""
        return load_file(DATA / f"{self.name}.safetensors")


@cache
def family(name: str) -> Family:
    """The family of this name; the test is skipped where the installed transformers lacks it."""
    if why := lacking(name):
        pytest.skip(why)
    row = INDEX[name]
    config = {**row["config"], "model_type": row["model_type"]}
    frames = tuple(row["frame_of_placeholder"])
    return Family(name, row["class"], row["model_type"], config, frames)


def available(name: str) -> bool:
    """Whether the transformers installed has this family, as the prompt here wants it."""
    return not lacking(name)


def lacking(name: str) -> str:
    """What this family lacks in the transformers installed; empty if nothing."""
    here, class_name = transformers.__version__, INDEX[name]["class"]
    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        return f"transformers {here} has no {class_name}"
    if "mm_encoder_outputs" not in inspect.signature(model_class.forward).parameters:
        return f"{class_name} of transformers {here} takes no mm_encoder_outputs (5.18 on)"
    if Version(here) < Version(SINCE.get(name, "0")):
        return f"{class_name} of transformers {here} reads another prompt than {SINCE[name]}"
    return ""


@cache
def _model(name: str, seed: int) -> Any:
    one = family(name)
    return build(one.model_class, one.config, seed)
