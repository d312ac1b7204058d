"""The file in which features lie: whole or not there, and known to be what was written."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bvllm_adapters.video.sampling import Sampling
from bvllm_adapters.weights.json_file import CheckpointError, readable
from bvllm_adapters.weights.whole import aside

FORMAT = "bvllm_features/1"


@dataclass(frozen=True, eq=False)
class FeaturesFile:
    """What such a file holds.

    Args:
        state: cls (n, C), rows (T,), seconds (T,), and patches (n, P, C) where they were kept.
        about: where the video comes from, and what has seen it.
        text: of `about`, as it lies there. digest: of all that was written.
    """

    file: Path
    state: dict[str, Tensor]
    about: dict[str, Any]
    text: str
    digest: str

    def check_whole(self) -> None:
        """CheckpointError for a file in which anything is not as it was written."""
        if digest_of(self.state, self.text) != self.digest:
            raise damaged(self.file, "its contents are not those that were saved")


def damaged(file: str | Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file}: is damaged: {reason}")


def write(file: str | Path, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write aside, and rename at last: whatever happens, what lay there before is whole.

    Raises:
        ValueError: the file's folder is not there, or it is a folder itself.
    """
    if not Path(file).parent.is_dir() or Path(file).is_dir():
        raise ValueError(f"file: got {file}, wanted one in a folder that is there")
    state = {name: value.cpu().contiguous() for name, value in state.items()}
    text = json.dumps(about)
    metadata = {"format": FORMAT, "about": text, "digest": digest_of(state, text)}
    with aside(Path(os.path.realpath(file))) as new:
        save_file(state, new, metadata)


def read(file: str | Path) -> FeaturesFile:
    """What `write` wrote.

    Raises:
        CheckpointError: for another kind of file, or one that holds anything else.
    """
    with readable(file), safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        # Copied: what is mapped is gone if the file is cut short, and the process with it.
        state = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    found = metadata.get("format")
    if found != FORMAT:
        raise CheckpointError(f"{file}: got a file of format {found!r}, wanted {FORMAT!r}")
    if "digest" not in metadata:
        raise CheckpointError(
            f"{file}: is of an earlier version, which did not note what the processor makes of "
            "frames; see the video again and save it anew"
        )
    text = metadata.get("about", "")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(file, f"about is no JSON ({error})") from error
    try:
        _check_state(state)
        _check_about(about)
    except (TypeError, ValueError) as error:
        raise damaged(file, str(error)) from error
    return FeaturesFile(Path(file), state, about, text, metadata["digest"])


def digest_of(state: Mapping[str, Tensor], text: str) -> str:
    """Of every bit of these tensors on the CPU, their names, shapes and dtypes, and a text."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _check_state(state: Mapping[str, Tensor]) -> None:
    """ValueError unless these are features of one video."""
    wanted = {"cls": 2, "rows": 1, "seconds": 1, "patches": 3}
    if not {*wanted} - {"patches"} <= state.keys() <= wanted.keys():
        raise ValueError(f"got tensors {sorted(state)}, wanted {sorted(wanted)}")
    for name, value in state.items():
        right = {"rows": value.dtype == torch.int64, "seconds": value.dtype == torch.float64}
        if not right.get(name, value.is_floating_point()) or value.dim() != wanted[name]:
            raise ValueError(f"{name}: got {value.dtype} {tuple(value.shape)}")
        # Patches of frames that are never chosen may be infinite in half precision.
        if not value.numel() or (name != "patches" and not bool(value.isfinite().all())):
            raise ValueError(f"{name}: got nothing, NaN or inf, wanted finite numbers")
    cls, rows, seconds = state["cls"], state["rows"], state["seconds"]
    steps = rows.diff()
    if rows[0] != 0 or rows[-1] != len(cls) - 1 or bool(((steps < 0) | (steps > 1)).any()):
        raise ValueError(f"rows: got {rows[:9].tolist()}..., wanted each of {len(cls)} in turn")
    if len(seconds) != len(rows) or bool((seconds.diff() <= 0).any()):
        raise ValueError(f"seconds: wanted {len(rows)} that increase, as rows")
    if "patches" in state and len(state["patches"]) != len(cls):
        raise ValueError(f"patches: got {len(state['patches'])}, wanted {len(cls)} as cls")


def _check_about(about: Any) -> None:
    """ValueError or TypeError unless it says where a video comes from."""
    if not isinstance(about, dict):
        raise TypeError(f"about: got {type(about).__name__}, wanted an object")
    kinds: dict[str, Any] = {
        "path": str | None, "fingerprint": str | None, "source": str, "is_image": bool,
        "frame_count": int, "duration": int | float, "reading": dict,
    }  # fmt: skip
    for name, kind in kinds.items():
        if name not in about or not isinstance(about[name], kind):
            raise TypeError(f"{name}: got {about.get(name)!r}, wanted {kind}")
    if not math.isfinite(about["duration"]) or about["frame_count"] < 1:
        raise ValueError("frame_count, duration: wanted a number of frames and their seconds")
    Sampling(**about["reading"])
