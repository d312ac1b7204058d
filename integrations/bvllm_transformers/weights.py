"""A checkpoint of transformers' and its processor, from a folder."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers
from torch import Tensor

from bvllm_adapters.weights.checkpoint import read_shapes, weight_files
from bvllm_adapters.weights.empty import without_weights
from bvllm_adapters.weights.json_file import CheckpointError, blamed, read_json
from bvllm_adapters.weights.sizes import MOST_PIXELS, check_layers
from bvllm_transformers.families import FAMILIES
from bvllm_transformers.layout import ghosts

ALIGNED = 64  # bytes
SMALL = 64  # pixels of a side
MOST_NUMBERS = 6 * MOST_PIXELS**2  # that two pictures are made of, in three colours each
_one_at_a_time = Lock()  # transformers sets defaults of torch for all threads while it loads


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The model of a checkpoint folder, complete or a CheckpointError; safetensors only."""
    file = folder / "config.json"
    config = read_json(file)
    name = next(n for n in config["architectures"] if n in FAMILIES)
    files = weight_files(folder)
    if any(one.suffix != ".safetensors" for one in files):
        raise CheckpointError(f"{folder}: got {files[0].name}, wanted weights as safetensors")
    check_layers(file, config, len(dict(read_shapes(files))))
    model_class: Any = getattr(transformers, name)
    with blamed(file):
        _check_size(model_class, folder, sum(one.stat().st_size for one in files))
    with _one_at_a_time, blamed(str(folder)):
        model, told = model_class.from_pretrained(
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


def _check_size(model_class: Any, folder: Path, size: int) -> None:
    """ValueError for a config that asks for far more numbers than there are: what the weights do
    not fill, transformers makes in memory and fills at random before it says so.

    Args:
        size: of the weights' files, in bytes; of packed ones a byte holds four numbers at most.
    """
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    empty = without_weights(lambda: model_class(config))
    numbers = sum(weight.numel() for weight in empty.parameters())
    if numbers > 4 * size:
        raise ValueError(
            f"got settings of a model of {numbers} numbers, wanted one that {size} bytes of "
            "weights can fill"
        )


def _align(model: Any) -> None:
    """Weights begin where torch's own do: the last bit of a matrix product can depend on it, and
    in a mapped file they lie as they come."""
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % ALIGNED:
            weight.data = weight.data.clone()


def processor_in(folder: Path) -> Any:
    """The processor that lies beside a checkpoint."""
    with blamed(f"{folder}: processor"):
        processor = transformers.AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        check_pictures(processor)
    return processor


def check_pictures(processor: Any) -> None:
    """ValueError for settings that make far larger pictures of a small one than any tower takes;
    found out by one without memory."""
    picture = ghosts(2, SMALL, SMALL)
    video: dict[str, Any] = {"videos": [picture], "do_sample_frames": False}
    makes: list[tuple[str, dict[str, Any]]] = [("video_processor", video)]
    makes.append(
        ("image_processor", {"images": [picture[0]], "input_data_format": "channels_first"})
    )
    for name, given in makes:
        maker = getattr(processor, name, None)
        if maker is None:
            continue
        try:
            made = maker(**given, return_tensors="pt", device="meta")
        except NotImplementedError:  # of what cannot be done without memory
            continue
        numbers = sum(value.numel() for value in made.values() if isinstance(value, Tensor))
        if numbers > MOST_NUMBERS:
            raise ValueError(
                f"{name}: got settings that make {numbers} numbers of two pictures of {SMALL} x "
                f"{SMALL}, wanted {MOST_NUMBERS} at most"
            )
