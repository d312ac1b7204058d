"""Tables and files of results as tests write and read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(file: Path, rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    """Rows of a file of results, behind its first line, as far as they are whole."""
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[1:-1]]
