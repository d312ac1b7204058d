from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_property_test_budget(tmp_path):
    out = subprocess.run(
        [sys.executable, EXAMPLES / "property_test_budget.py"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "no budget was exceeded" in out.stdout
