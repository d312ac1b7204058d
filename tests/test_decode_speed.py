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
        "--width", "128", "--rounds", "1",
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "1 frame/s, 60 frames" in out.stdout and "no bit differs" in out.stdout
