"""A model and the baselines that were trained beside it, from one folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bvllm_adapters.evaluation.methods import METHODS, build_method
from bvllm_adapters.hosts.base import TOKENIZER, tokenizer_of
from bvllm_adapters.weights.checkpoint import load_strictly, read_tensors

BASELINES = "baselines"  # a folder of <method>.safetensors beside the model's own weights


def with_baselines(model: nn.Module, folder: Path | None) -> dict[str, nn.Module]:
    """The model as "bvllm", and each baseline that lies in the folder; they share its tower.

    A baseline's file holds all weights of the model in which its method differs from `model`:
    those that are not in it are the model's.

    Raises:
        CheckpointError: a file that does not fit.
    """
    models = {METHODS[0]: model}
    for method in METHODS[1:]:
        file = None if folder is None else folder / BASELINES / f"{method}.safetensors"
        if file is not None and file.is_file():
            models[method] = _baseline(method, model, file)
    return models


def _baseline(method: str, model: nn.Module, file: Path) -> nn.Module:
    tower = getattr(model, "vision_tower", None)
    # A deep copy shares what its memo holds already: here the tower, by far the largest part.
    baseline: Any = copy.deepcopy(model, {} if tower is None else {id(tower): tower})
    tokenizer = tokenizer_of(model)
    replaced = build_method(method, tokenizer.config)
    setattr(baseline, TOKENIZER, replaced.to(next(model.parameters()).device))
    own = dict(read_tensors([file]))
    load_strictly(
        baseline,
        own.items(),
        dtype=torch.float32,
        source=str(file),
        optional=lambda name: not name.startswith(TOKENIZER),
    )
    baseline.tie_weights()  # what was copied is still tied to the copy's first weights
    baseline.eval()
    return baseline  # type: ignore[no-any-return]
