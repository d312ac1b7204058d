"""examples/wrap_videollama2.py, with and without a checkpoint."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bvllm_adapters as bvllm
from bvllm_videollama2.preprocessing import frame_indices
from bvllm_videollama2.tiny import tiny_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("wrap", EXAMPLES / "wrap_videollama2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_checkpoint(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--max-new-tokens", "3", "--device", "cpu"])
    out = capsys.readouterr().out
    assert out.startswith("no --checkpoint: a tiny one with random weights")
    alone, wrapped = re.findall(r"tokens +(\d+)", out)
    assert alone == "45"
    assert int(wrapped) in range(32, 193, 32)  # 32 for each of 6 frames that were not merged
    for stage in ("decode", "tower", "selector", "sampler", "budget", "projection", "prefill"):
        assert re.search(rf"seconds .*{stage} \d+\.\d+", out)
    assert len(re.findall(r"peak MiB decode \d+, .*generate \d+", out)) == 2


def test_with_a_checkpoint_and_a_budget(
    example: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, projector="stc_connector_v35", num_frames=4)
    arguments = ["--checkpoint", str(tmp_path), "--max-tokens", "40", "--max-new-tokens", "3"]
    example.main([str(EXAMPLES / "big_buck_bunny.mp4"), *arguments, "--device", "cpu"])
    out = capsys.readouterr().out
    assert "no --checkpoint" not in out
    assert re.findall(r"tokens +(\d+)", out) == ["8", "40"]


def test_the_hosts_frames_are_those_it_would_read_itself(example: Any) -> None:
    everything = bvllm.read_video(EXAMPLES / "big_buck_bunny.mp4", fps=None).frames
    wanted = everything[frame_indices(len(everything), num_frames=4)]
    found = example.host_frames(EXAMPLES / "big_buck_bunny.mp4", 4)
    assert np.array_equal(found, wanted)
