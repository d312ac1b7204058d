"""A look before a run: `bvllm train --dry-run`, and `bvllm train` itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import HOSTS, ROWS, talk

import bvllm_adapters as bvllm
from bvllm_adapters.cli.main import main

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

    from bvllm_adapters.training.run import prepared

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
