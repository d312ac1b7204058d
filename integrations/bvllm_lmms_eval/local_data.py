"""Data of a task that lies on the user's disk, in the folder that an environment variable names.

lmms-eval reads data from the hub, or from files that a task's YAML names. A task here names a
one-line file, `where.json`, that says which variable and which file in its folder; `process_docs`
puts the questions of that file in its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FORMATS = (".mp4", ".avi", ".webm", ".mkv", ".mov")


def rows_of(where: Any) -> tuple[Path, list[dict[str, Any]]]:
    """The user's folder, and the rows of the file in it.

    Args:
        where: the one row of where.json: variable, file.

    Raises:
        ValueError: the variable is not set, or the folder has no such file, or it is no JSON list.
    """
    variable, name = where["variable"], where["file"]
    said = os.environ.get(variable)
    if not said:
        raise ValueError(f"{variable}: got no such environment variable, wanted a folder in it")
    folder = Path(said).expanduser()
    file = folder / name
    if not file.is_file():
        raise ValueError(f"{variable}: got {said}, wanted a folder with {name} in it")
    rows = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: got another kind of JSON, wanted a list of questions")
    return folder, rows


def found(places: Iterable[Path]) -> str:
    """The first of these files that is there.

    Raises:
        FileNotFoundError: none is; names the first.
    """
    wanted = [*places]
    for place in wanted:
        if place.is_file():
            return str(place)
    raise FileNotFoundError(f"{wanted[0]}: is not there, nor in the folders beside it")


def dataset_of(rows: list[dict[str, Any]]) -> Any:
    """As lmms-eval holds documents."""
    from datasets import Dataset

    return Dataset.from_list(rows)
