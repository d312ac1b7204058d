"""A checkpoint of transformers' and its processor, from a folder."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers

from bvllm_adapters.weights.json_file import CheckpointError, blamed, read_json
from bvllm_transformers.families import FAMILIES

ALIGNED = 64  # bytes
_one_at_a_time = Lock()  # transformers sets defaults of torch for all threads while it loads


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The model of a checkpoint folder, complete or a CheckpointError; safetensors only."""
    file = folder / "config.json"
    name = next(n for n in read_json(file)["architectures"] if n in FAMILIES)
    with _one_at_a_time, blamed(str(folder)):
        model, told = getattr(transformers, name).from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    wrong = {kind: sorted(map(str, told[kind])) for kind in ("missing_keys", "mismatched_keys")}
    wrong = {kind: names for kind, names in wrong.items() if names}
    if wrong:
        raise CheckpointError(f"{folder}: {wrong}, wanted all weights of a {name}")
    _align(model)
    return model.eval()


def _align(model: Any) -> None:
    """Weights begin where torch's own do: the last bit of a matrix product can depend on it, and
    in a mapped file they lie as they come."""
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % ALIGNED:
            weight.data = weight.data.clone()


def processor_in(folder: Path) -> Any:
    """The processor that lies beside a checkpoint."""
    with blamed(f"{folder}: processor"):
        return transformers.AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
