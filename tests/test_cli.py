from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bvllm_adapters.cli import main

ROOT = Path(__file__).parents[1]
CLIP = str(ROOT / "examples" / "big_buck_bunny.mp4")


@pytest.mark.parametrize(("fps", "decoded"), [("1", 6), ("2", 11)])
def test_ask_keeps_the_budget_at_any_frame_rate(capsys, fps, decoded):
    arguments = ["ask", CLIP, "Who?", "--max-tokens", "3", "--fps", fps, "--max-new-tokens", "3"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"frames    {decoded} decoded" in out
    assert "3 visual tokens of a budget of 3" in out


def test_ask_loads_a_model(tmp_path, capsys):
    from bvllm_qwen2.tiny import tiny_model

    model, processor = tiny_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert main(["ask", CLIP, "Who?", "--model", str(tmp_path), "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "visual tokens of a budget of 32" in out
    assert "demo's own" not in out


def test_problems_are_told_in_one_line(capsys, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for arguments, told in (
        (["ask", str(tmp_path / "missing.mp4"), "?"], "missing.mp4"),
        (["ask", str(tmp_path / "text.mp4"), "?"], "text.mp4"),
        (["ask", CLIP, "?", "--max-tokens", "0"], "max_tokens: got 0, wanted an int >= 1"),
        (["ask", CLIP, "?", "--fps", "0"], "fps: got 0"),
        (["ask", CLIP, "?", "--model", str(tmp_path)], "holds no config.json"),
        (["plan", "0"], "num_frames: got 0"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("bvllm: ") and told in error and "\n" not in error


def test_plan(capsys):
    assert main(["plan", "3600", "--max-tokens", "512"]) == 0
    assert capsys.readouterr().out == "512 visual tokens at most for 3600 frames\n"
    main(["plan", "3600"])
    assert capsys.readouterr().out.startswith("1024 ")


def test_hosts(capsys):
    assert main(["hosts", "--check"]) == 0
    out = capsys.readouterr().out
    assert "BvllmQwen2ForConditionalGeneration  bvllm_qwen2:HOST of bvllm-adapters" in out
    assert "ok" in out


def test_hosts_check_fails_for_a_broken_one(tmp_path, monkeypatch, capsys):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bvllm_adapters.hosts]\nBroken = nowhere:HOST\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["hosts"]) == 0
    assert main(["hosts", "--check"]) == 1
    assert "nowhere:HOST of broken 1.0) is broken" in capsys.readouterr().out


def test_the_console_command_is_installed():
    command = Path(sys.executable).with_name("bvllm")
    out = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in out for name in ("demo", "ask", "hosts", "train", "evaluate", "plan"))
