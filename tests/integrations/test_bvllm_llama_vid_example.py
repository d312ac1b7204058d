"""examples/wrap_llama_vid.py runs as it stands, offline."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_it_runs_on_the_spot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = str(EXAMPLES / "big_buck_bunny.mp4")
    arguments = ["--max-tokens", "20", "--max-new-tokens", "4", video, "Who wakes up?"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["wrap_llama_vid.py", *arguments])
    runpy.run_path(str(EXAMPLES / "wrap_llama_vid.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "tiny model with random weights" in printed
    baseline, wrapped = printed.split("wrapped, at most 20 visual tokens")
    frames = int(re.findall(r"(\d+) decoded", wrapped)[0])
    assert f"visual tokens  {2 * frames}" in baseline  # LLaMA-VID's own: two a frame
    assert 0 < int(re.findall(r"visual tokens  (\d+)", wrapped)[0]) <= 20
    for half in (baseline, wrapped):
        assert "answer " in half and "peak MiB " in half and re.search(r"tower \d", half)
