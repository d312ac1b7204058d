"""A look before a run: `bvllm train --dry-run`, and `bvllm train` itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import HOSTS, ROWS, talk

import bvllm_adapters as bvllm
from bvllm_adapters.cli.main import main
from bvllm_adapters.training import needs
from bvllm_adapters.training.dry_run import dry_run
from bvllm_adapters.training.run import prepared, train

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.mark.parametrize("host", HOSTS)
def test_what_a_run_would_do(
    host: str, configured: Any, data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"id": "gone", "video": "gone.mp4", "conversations": talk("<video>what?", "a cat")}
    data.write([*ROWS, gone, "nonsense"])
    config = configured(host, max_skipped=0.5, max_length=170)
    config.save(tmp_path / "config.yaml")
    assert main(["train", str(tmp_path / "config.yaml"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "rows       5, and 1 malformed" in told
    assert "malformed: " + str(data.file) + "[5]: got str" in told
    assert "1 image, 1 text, 3 video" in told
    assert "files      4, of which 1 are missing" in told
    assert f"missing: {data.folder / 'gone.mp4'}" in told
    assert "steps      3 of 4 rows; on one device 1 batches of 4 each" in told
    assert told.count("sample  ") == 5
    assert "question: 'who walks over the meadow?'" in told
    assert "video of 6 frames: 12 visual tokens at most" in told
    assert "video of 4 frames: 12 visual tokens at most" in told
    assert "image: 4 visual tokens at most" in told
    assert "cannot be read" in told and "(id gone)" in told
    over = 2 if host == "bvllm_llama_vid" else 0
    assert f"lengths    of 5 rows; {over} have more than max_length=170 ids" in told

    model, _ = prepared(config)
    trained = {
        part: sum(p.numel() for p in getattr(model.balanced_tokenizer, part).parameters())  # type: ignore[union-attr]
        for part in ("frame_selector", "projection")
    }
    assert f"trained    {sum(trained.values()):,} parameters" in told
    for part, count in trained.items():
        (line,) = [line for line in told.splitlines() if line.split()[:1] == [part]]
        assert line.split()[1:] == [f"{count:,}", "of", f"{count:,}"]
    assert not config.output.exists()


def test_missing_files_are_an_error(
    configured: Any, data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"id": "gone", "video": "gone.mp4", "conversations": talk("<video>what?", "a cat")}
    data.write([*ROWS, gone])
    configured().save(tmp_path / "config.yaml")
    assert main(["train", str(tmp_path / "config.yaml"), "--dry-run"]) == 1
    assert "got 1 of 5 rows without their files, wanted 1.00% at most" in capsys.readouterr().err


def test_the_command_trains_and_goes_on(
    configured: Any, hosts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(max_steps=1)
    config.save(tmp_path / "config.yaml")
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    assert f"adapter   {config.output}" in capsys.readouterr().out
    model: Any = bvllm.wrap(bvllm.load(hosts["bvllm_qwen2"]), adapter=config.output)
    assert model.balanced_tokenizer.config.num_frames == 4
    assert main(["train", str(tmp_path / "config.yaml")]) == 1
    assert "wanted to resume, or another folder" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "config.yaml"), "--resume"]) == 0


@pytest.fixture
def words(configured: Any, data: Any) -> Any:
    """A config of a small run on words alone, with other fields."""
    data.write([ROWS[2]])
    fixed = {"global_batch": 1, "batch_per_device": 1, "max_steps": 2, "save_every": 1}
    return lambda **fields: configured(**fixed | fields)


def refused(config: Any, message: str, **how: Any) -> None:
    """A look and a run both say so, and write nothing."""
    before = sorted(config.output.parent.rglob("*"))
    for tried in (lambda: list(dry_run(config, **how)), lambda: train(config, **how)):
        with pytest.raises(ValueError, match=message):
            tried()
    assert sorted(config.output.parent.rglob("*")) == before


def test_deepspeed_and_its_file(
    words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "zero.json"
    config = words(deepspeed=str(file))
    refused(config, r"deepspeed: .*zero\.json: cannot be read")
    for text in ("{", "[" * 9999, '{"a": 1, "a": 2}'):
        file.write_text(text)
        refused(config, r"deepspeed: .*zero\.json: cannot be read")
    file.write_text("[]")
    refused(config, r"deepspeed: .*zero\.json: got no JSON object, wanted DeepSpeed's settings")
    file.write_text("{}")
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    refused(config, "deepspeed: got .*, but the package is not installed; wanted `pip install")
    monkeypatch.setattr(needs, "find_spec", lambda name: name == "deepspeed")
    assert list(dry_run(config))


def test_integrations_to_report_to(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "get_available_reporting_integrations", lambda: ["tensorboard"])
    refused(words(report_to=["wandb"]), "report_to: got 'wandb', which is not installed, wanted")
    refused(words(report_to=["papyrus"]), "report_to: got 'papyrus', wanted some of .*tensorboard")
    for name in ("tensorboard", "none"):
        assert list(dry_run(words(report_to=[name])))


def test_an_output_that_cannot_be_written(
    words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    refused(words(output=tmp_path / "file"), "output: got .*file, but .* cannot be written into")
    refused(words(output=tmp_path / "file" / "run"), "output: got .*run, but .*file cannot be")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    refused(words(), "output: got .*run, but .* cannot be written into")


def test_room_for_checkpoints(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = words(keep=None)
    train(config)
    taken = sum(file.stat().st_size for file in config.output.rglob("*") if file.is_file())
    model, _ = prepared(config)
    needed = needs.room_needed(config, model, 2)
    assert 0.9 * taken < needed < 1.1 * taken
    assert needs.room_needed(words(keep=1, max_steps=50), model, 50) <= needed
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    refused(words(keep=None, output=config.output.parent / "other"), r"output: got .* GB free in")


def test_a_look_at_a_run_that_goes_on(
    words: Any, data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = words()
    refused(config, "resume: got no checkpoint", resume=True)
    train(config)
    refused(config, "output: got .*checkpoint-2 in it, wanted to resume")
    config.save(tmp_path / "config.yaml")
    assert main(["train", str(tmp_path / "config.yaml"), "--dry-run", "--resume"]) == 0
    told = capsys.readouterr().out
    assert f"resumes    {config.output / 'checkpoint-2'}" in told
    assert "room  " in told
    data.write([ROWS[2], ROWS[2]])
    refused(config, "resume: got other data", resume=True)


def test_validation_is_looked_at(words: Any, data: Any) -> None:
    file = data.folder / "validation.jsonl"
    config = words(validation=[{"file": file}], validate_every=7)
    refused(config, r"validation: .*cannot be read")
    file.write_text(json.dumps(ROWS[0]))
    assert "validates  1 rows, each 7 steps and after the last" in list(dry_run(config))
    file.write_text(json.dumps({"video": "gone.mp4", "conversations": talk("q", "a")}))
    refused(
        config, r"validation: got 1 of 1 rows without their files, wanted 0.00% at most; .*gone"
    )
    (data.folder / "gone.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"validation: got .*gone\.mp4"):
        list(dry_run(config))
