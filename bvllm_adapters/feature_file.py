"""What a model has seen of a video, in one safetensors file that knows where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bvllm_adapters.checkpoint import CheckpointError

FORMAT = "bvllm_features/1"


def write(file: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Tensors and what is known about them, as JSON.

    Raises:
        ValueError: the file's folder is not there.
    """
    if not Path(file).parent.is_dir():
        raise ValueError(f"file: got {file}, wanted one in a folder that is there")
    metadata = {"format": FORMAT, "about": json.dumps(about)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata)


def read(file: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` wrote.

    Raises:
        CheckpointError: for another kind of file, or a damaged one.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{file}: got a file of format {metadata.get('format')!r}, wanted {FORMAT!r}"
                )
            # Copied: what is mapped is gone if the file is cut short, and the process with it.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    about: dict[str, Any] = json.loads(metadata["about"])
    return tensors, about
