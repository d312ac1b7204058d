"""Several processes on CPU: what they compute together is what one computes alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROWS, Watch, assert_same_steps

from bvllm_adapters.training.run import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
ZERO2 = Path(__file__).parents[2] / "examples" / "training" / "zero2.json"
SCRIPT = Path(__file__).with_name("watched_run.py")


def run_by_two(config: Any, tmp_path: Path, *, timeout: float, **env: str) -> list[Any]:
    """What each of two processes saw of a run."""
    config.save(tmp_path / "config.yaml")
    seen = tmp_path / "seen.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path / "config.yaml"), str(seen)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(f"{seen}.{rank}", weights_only=True) for rank in range(2)]


def test_two_processes_take_the_same_steps_as_one(configured: Any, tmp_path: Path) -> None:
    fields = {"stage": "instruction", "max_steps": 2}
    # Of three rows, so that one of two processes has one to spare.
    file = tmp_path / "data" / "validation.json"
    file.write_text(json.dumps(ROWS[:3]))
    fields |= {"validation": [{"file": str(file)}], "validate_every": 1}
    alone = Watch()
    model = train(configured(**fields, output=tmp_path / "alone"), callbacks=[alone])

    # Four batches of one row a step, of which one has words only and one an image.
    config = configured(**fields, batch_per_device=1)
    seen = run_by_two(config, tmp_path, timeout=180)
    assert [each["about"]["devices"] for each in seen] == [2, 2]
    together = Watch()
    together.losses, together.gradients = seen[0]["losses"], seen[0]["gradients"]
    assert_same_steps(together, alone)
    for name, weight in seen[0]["weights"].items():
        assert torch.equal(weight, seen[1]["weights"][name]), name
    found = [validated(output) for output in (tmp_path / "alone", config.output)]
    assert len(found[0]) == 2
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert seen[0]["weights"].keys() == trained


def validated(output: Path) -> list[float]:
    """The losses of validation that a run logged."""
    state = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())
    return [each["eval_loss"] for each in state["log_history"] if "eval_loss" in each]


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint(configured: Any, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1}  # whose noise each process has of its own
    fields = {"stage": "instruction", "lora": lora, "max_steps": 4, "save_every": 2, "keep": None}
    config = configured(**fields, batch_per_device=1)
    whole = run_by_two(config, tmp_path, timeout=180)
    (config.output / "checkpoint-4" / "rng_state_1.pth").unlink()
    again = run_by_two(config, tmp_path, timeout=180, RESUME="1")
    assert again[1]["losses"] == whole[1]["losses"][2:]
    for rank in range(2):
        for name, weight in again[rank]["weights"].items():
            assert torch.equal(weight, whole[rank]["weights"][name]), name


@pytest.mark.slow
def test_zero_2_takes_the_same_steps_and_can_be_resumed(configured: Any, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    fields = {"stage": "instruction", "epochs": 4}
    alone = Watch()
    train(configured(**fields, output=tmp_path / "alone"), callbacks=[alone])

    config = configured(**fields, batch_per_device=1, save_every=2, keep=None, deepspeed=str(ZERO2))
    # DeepSpeed compiles an operator when it is first used, under a lock that an interrupted run
    # leaves behind: so in a folder of its own, and with time.
    extensions = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    seen = run_by_two(config, tmp_path, timeout=1500, **extensions)
    trained = sum(weight.numel() for weight in seen[0]["weights"].values())
    for each in seen:
        about = each["about"]
        assert about["optimizer"] == "DeepSpeedZeroOptimizer"
        assert about["gradients are sharded"]
        # Half of them, and a little padding.
        assert trained / 2 <= about["weights here"] < trained / 2 + 1000
        assert about["most of a moment here"] <= about["weights here"]
    assert seen[0]["losses"] == pytest.approx(alone.losses, rel=1e-5)

    # Its checkpoint has no frozen weights, and a run goes on from it as if it had never stopped.
    checkpoint = config.output / "checkpoint-2"
    states = list(checkpoint.glob("global_step*/mp_rank_00_model_states.pt"))
    assert len(states) == 1
    assert states[0].stat().st_size < 8 * trained
    shutil.rmtree(config.output / "checkpoint-4")
    again = run_by_two(config, tmp_path, timeout=600, RESUME="1", **extensions)
    assert again[0]["losses"] == seen[0]["losses"][2:]
    for name, weight in again[0]["weights"].items():
        assert torch.equal(weight, seen[0]["weights"][name]), name
