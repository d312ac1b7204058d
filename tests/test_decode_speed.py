from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_decode_speed(tmp_path):
    pytest.importorskip("decord")
    command = [
        sys.executable, EXAMPLES / "decode_speed.py", "--work", tmp_path, "--minutes", "1",
        "--preset", "medium", "ultrafast", "--width", "128", "--rounds", "2",
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.count("1 frame/s, 60 frames") == 2
    assert out.stdout.count("no bit differs") == 2
    # Measured, or a line that says why not.
    assert "  torchcodec: " in out.stdout or "torchcodec: left out" in out.stdout
