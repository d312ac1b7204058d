from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_hosts import videollama2, wrap_small

import bvllm_adapters as bvllm
from bvllm_adapters.cli.main import main
from bvllm_adapters.evaluation.needle import DEMO_VIDEO
from bvllm_qwen2.shim import DEMO

DEMO_SCOUT = DEMO.with_name("demo_scout")

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


def test_ask_gives_a_budget_to_a_host_without(tmp_path, capsys, caplog):
    videollama2(tmp_path)
    asked = ["ask", CLIP, "Who?", "--max-new-tokens", "3", "--model", str(tmp_path)]
    assert main([*asked, "--max-tokens", "5"]) == 0
    assert "5 visual tokens of a budget of 5" in capsys.readouterr().out
    assert "untrained" in caplog.text


@pytest.mark.parametrize("saved", ["host alone", "host and adapter"])
def test_ask_takes_an_adapter(saved, tmp_path, capsys):
    model, processor = videollama2(tmp_path / "host")
    wrap_small(model)
    bvllm.save_adapter(model, tmp_path / "adapter")
    wanted = bvllm.ask(model, CLIP, "Who?", processor=processor, max_new_tokens=3)
    if saved == "host and adapter":
        other = wrap_small(bvllm.unwrap(model), max_tokens=1)
        other.save_pretrained(tmp_path / "host")
    asked = ["ask", CLIP, "Who?", "--max-new-tokens", "3", "--model", str(tmp_path / "host")]
    assert main([*asked, "--adapter", str(tmp_path / "adapter")]) == 0
    out = capsys.readouterr().out
    assert f"answer    {wanted.text}\n" in out
    assert f"{wanted.trace.num_tokens} visual tokens of a budget of 9" in out


def test_a_scout_goes_where_an_adapter_goes(tmp_path, capsys):
    scout = ["--adapter", str(DEMO_SCOUT)]
    assert main(["ask", str(DEMO_VIDEO), "What digit is red?", *scout]) == 0
    out = capsys.readouterr().out
    assert "answer    6" in out and re.search(
        r"64 decoded, \d chosen, [1-4] through the tower", out
    )
    assert main(["bench", "--frames", "16", "--repeats", "1", *scout]) == 0
    assert re.search(r"^  scout ", capsys.readouterr().out, re.M)
    evaluate = ["evaluate", "needle", "--videos", "2", "--frames", "32", *scout]
    assert main(evaluate) == 0
    method, frames, needles, accuracy, *_ = capsys.readouterr().out.splitlines()[1].split()
    assert (method, frames, needles) == ("bvllm", "32", "3") and float(accuracy) > 0.5


def test_problems_are_told_in_one_line(capsys, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for arguments, told in (
        (["ask", str(tmp_path / "missing.mp4"), "?"], "missing.mp4"),
        (["ask", str(tmp_path / "text.mp4"), "?"], "text.mp4"),
        (["ask", CLIP, "?", "--max-tokens", "0"], "max_tokens: got 0, wanted an int >= 1"),
        (["ask", CLIP, "?", "--fps", "0"], "fps: got 0"),
        (["ask", CLIP, "?", "--model", str(tmp_path)], "holds no config.json"),
        (["ask", CLIP, "?", "--adapter", str(tmp_path)], "adapter.json"),
        (["bench", "--host", "AnyModel", "--adapter", "a"], "--adapter: got a beside --host"),
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
