"""What mkdocs.yml has griffe, which reads the sources for the reference, do with each docstring."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from docstrings import as_markdown

TOP = Path(__file__).parents[2] / "bvllm_adapters" / "__init__.py"


def public_names() -> set[str]:
    """Keys of _HOMES, from the source: importing the package would take torch along."""
    for node in ast.parse(TOP.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOMES":
            return set(ast.literal_eval(node.value))
    raise ValueError(f"{TOP}: no _HOMES, wanted the public names")


class HouseDocstrings(griffe.Extension):
    def __init__(self) -> None:
        self.public = public_names()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, self.public)
