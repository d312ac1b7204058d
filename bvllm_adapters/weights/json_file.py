"""JSON that others wrote: an object, or one error that names the file and what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAMP = "saved"  # a key of our own files, see `bvllm_adapters.weights.stamped`
MOST_BYTES = 2**28  # a tokenizer's vocabulary is a few dozen MB; nothing here is more


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model; says which keys or files."""


def read_json(file: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: for a file that is not there, is no UTF-8, is cut off, nested too deeply,
            larger than 256 MiB, or holds anything but an object.
    """
    file = Path(file)
    with readable(file):
        if file.stat().st_size > MOST_BYTES:
            raise CheckpointError(f"{file}: holds {file.stat().st_size} bytes of JSON, wanted less")
        values: Any = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refused)
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds a {type(values).__name__}, wanted a JSON object")
    return values


def _refused(constant: str) -> Any:
    """NaN and infinities are no JSON, and no setting is either."""
    raise ValueError(f"got {constant}, wanted numbers")


def is_number(value: Any) -> bool:
    """A finite one; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def readable(file: str | Path) -> Iterator[None]:
    """What reads a file inside may raise what it likes: JSON, pickle, zip, safetensors and the
    system all have errors of their own. Here it is a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error


@contextmanager
def blamed(file: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of what stands in `file`: a CheckpointError that
    names it, for settings that others' constructors choke on, each in its own way."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        told = str(error) or type(error).__name__
        raise CheckpointError(f"{file}: {told}") from error
