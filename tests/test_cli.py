from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny_hosts import llama_vid, videollama2, wrap_small

import bvllm_adapters as bvllm
from bvllm_adapters.cli import placement
from bvllm_adapters.cli.main import COMMANDS, main
from bvllm_adapters.evaluation.needle import DEMO_VIDEO
from bvllm_adapters.hosts.generation import NEW_TOKENS
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


@pytest.mark.parametrize("host", [videollama2, llama_vid])
def test_an_untrained_tokenizer_never_answers_quietly(host, tmp_path, capsys, caplog):
    host(tmp_path)
    asked = ["ask", CLIP, "Who?", "--max-new-tokens", "3", "--model", str(tmp_path)]
    assert main([*asked, "--max-tokens", "5"]) == 1
    told = capsys.readouterr()
    assert not told.out and "has no BalancedTokenizer yet; wanted --adapter" in told.err
    assert "or --untrained to ask by random weights" in told.err
    assert main([*asked, "--max-tokens", "5", "--untrained"]) == 0
    assert "5 visual tokens of a budget of 5" in capsys.readouterr().out
    assert "untrained" in caplog.text
    assert main(["evaluate", "needle", "--model", str(tmp_path)]) == 1
    assert "--untrained" in capsys.readouterr().err


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
        (["ask", CLIP, "?", "--query", "a man"], "query: got 'a man', wanted None, as a Frame"),
        (["ask", CLIP, "?", "--model", str(tmp_path)], "holds no config.json"),
        (["ask", CLIP, "?", "--adapter", str(tmp_path)], "adapter.json"),
        (["bench", "--host", "AnyModel", "--adapter", "a"], "--adapter: got a beside --host"),
        (["plan", "0"], "num_frames: got 0"),
        (["ask", CLIP, "?", "--max-new-tokens", "0"], "max_new_tokens: got 0, wanted an int >= 1"),
        (["ask", CLIP, "?", "--device", "nowhere"], "--device: got 'nowhere', wanted one that is"),
        (["ask", CLIP, "?", "--skip-similar", "-1"], "skip_similar: got -1"),
        (["train", str(tmp_path / "no.yaml")], "no.yaml"),
        (["evaluate", "needle", "--json", "not/there/a.json"], "--json: got not/there/a.json"),
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


# --- how a command ends ---------------------------------------------------------------------------

WORDS = {
    "demo": [], "ask": ["a.mp4", "?"], "select": ["a.mp4", "--out", "a"], "hosts": [],
    "train": ["a.yaml"], "evaluate": ["needle"],
    "batch": ["a.jsonl", "-o", "b.jsonl"], "bench": [], "plan": ["3"],
    "report": ["a.mp4", "?", "-o", "a.html"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "bvllm: interrupted"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (ValueError("fps: got 0\n  wanted more"), 1, "bvllm: fps: got 0 wanted more"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "bvllm: CUDA out of memory"),
        (ImportError("no tensorboard"), 1, "bvllm: no tensorboard"),
        (KeyError("odd"), 1, "bvllm: KeyError: 'odd' (BVLLM_DEBUG=1 shows where)"),
        (ValueError(), 1, "bvllm: ValueError: (BVLLM_DEBUG=1 shows where)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_happens_is_told_in_one_line(command, raised, code, told, monkeypatch, capsys):
    def run(options):
        raise raised

    monkeypatch.setattr(COMMANDS[command], "run", run)
    assert main([command, *WORDS[command]]) == code
    assert " ".join(capsys.readouterr().err.split()) == told


def test_a_problem_shows_where_it_arose_if_asked(monkeypatch):
    monkeypatch.setenv("BVLLM_DEBUG", "1")
    with pytest.raises(ValueError, match="num_frames: got 0"):
        main(["plan", "0"])


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["ask"], ["plan", "many"], ["ask", "a", "?", "--dtype", "int8"]]
)
def test_a_wrong_command_line_is_one_line_too(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("bvllm: ") and error.count("\n") == 1
    assert "--help" in error


def test_warnings_are_one_line(monkeypatch, capsys):
    def run(options):
        warnings.warn("the file\nis truncated", UserWarning, stacklevel=2)
        return 0

    monkeypatch.setattr(COMMANDS["plan"], "run", run)
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["plan", "3"]) == 0
    assert capsys.readouterr().err == "bvllm: the file is truncated\n"
    assert warnings.showwarning is shown


def started(*arguments: str) -> subprocess.Popen[str]:
    """The command as from the shell, its output through pipes and not held back."""
    code = "import sys; from bvllm_adapters.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("taken_for", [None, ImportError])
def test_ctrl_c_that_a_library_takes_for_something_else(taken_for, monkeypatch, capsys):
    """As some do while they are imported."""

    def run(options):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            if taken_for is not None:
                raise taken_for("cannot be imported") from error
        return 0

    monkeypatch.setattr(COMMANDS["plan"], "run", run)
    before = signal.getsignal(signal.SIGINT)
    assert main(["plan", "3"]) == 130
    assert capsys.readouterr().err == "bvllm: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_ctrl_c_is_one_line():
    command = started("demo")
    assert "needles.mp4" in command.stdout.readline()  # it has begun, and imports torch now
    command.send_signal(signal.SIGINT)
    _, error = command.communicate(timeout=120)
    assert command.returncode == 130 and error == "bvllm: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has other pipes")
def test_who_reads_a_part_is_left_alone():
    with started("demo") as command:
        assert command.stdout.readline()
        command.stdout.close()
        error = command.stderr.read()
        assert command.wait(timeout=120) == 141
        assert "bvllm:" not in error and "pipe" not in error.lower()


# --- where the model is ---------------------------------------------------------------------------


def test_a_model_is_where_and_in_what_is_asked(tmp_path, capsys, monkeypatch):
    from bvllm_adapters import conversation

    seen = []
    opened = conversation.open_video

    def look(model, *arguments, **settings):
        seen.append((str(model.device), model.dtype))
        return opened(model, *arguments, **settings)

    monkeypatch.setattr(conversation, "open_video", look)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for more, wanted in (
        ([], ("cpu", torch.float32)),
        (["--device", "cpu", "--dtype", "bfloat16"], ("cpu", torch.bfloat16)),
    ):
        assert main(["ask", str(DEMO_VIDEO), "What digit is red?", *more]) == 0
        assert seen.pop() == wanted and "answer    6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpu", "knows_bf16", "device", "dtype"),
    [
        (False, False, "cpu", torch.float32),
        (True, True, "cuda", torch.bfloat16),
        (True, False, "cuda", torch.float16),
    ],
)
def test_a_gpu_is_taken_by_itself(gpu, knows_bf16, device, dtype, monkeypatch):
    made = torch.empty(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: knows_bf16)
    asked = []
    monkeypatch.setattr(torch, "empty", lambda n, device: asked.append(device) or made)
    placement.device_of(None)
    assert asked == [device]
    found = placement.dtype_of(None, torch.device(device))
    assert found == dtype
    assert placement.dtype_of("float32", torch.device(device)) == torch.float32


def test_the_length_of_an_answer_is_pythons(capsys):
    with pytest.raises(SystemExit):
        main(["ask", "--help"])
    assert f"length of the answer at most ({NEW_TOKENS})" in " ".join(
        capsys.readouterr().out.split()
    )
