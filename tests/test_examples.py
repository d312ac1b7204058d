from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bvllm_adapters as bvllm
from bvllm_adapters.evaluation.shipped import with_baselines

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_property_test_budget(tmp_path):
    out = subprocess.run(
        [sys.executable, EXAMPLES / "property_test_budget.py"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert "no budget was exceeded" in out.stdout


@pytest.mark.parametrize(
    ("table", "best", "worst"),
    [
        ("needles", "tower, w = 40", "uniform"),
        pytest.param("worlds", "relevance", "uniform", marks=pytest.mark.slow),
        pytest.param("answers", "learned, K = 4", "uniform, K = 4", marks=pytest.mark.slow),
        pytest.param("footage", "thumbnails, w = 40", "uniform", marks=pytest.mark.slow),
    ],
)
def test_frame_selectors_are_compared(tmp_path, table, best, worst):
    out = subprocess.run(
        [sys.executable, EXAMPLES / "frame_selectors.py", table, "--quick"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    first = re.compile(r"^\| (.+?) \| (\d\.\d\d) \[(\d\.\d\d), (\d\.\d\d)\]", re.M)
    told = {name: tuple(map(float, shares)) for name, *shares in first.findall(out.stdout)}
    assert all(low <= share <= high for share, low, high in told.values())
    assert told[best][0] > told[worst][0]


@pytest.mark.slow
def test_videos_an_hour_are_told_with_their_shares(tmp_path):
    command = ["batch_speed.py", "--videos", "2", "--seconds", "16", "--fps", "2", "--rounds", "1"]
    out = subprocess.run(
        [sys.executable, EXAMPLES / command[0], *command[1:]],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    rows = [line.strip("| ").split("|") for line in out.stdout.splitlines() if line[:1] == "|"]
    assert [[cell.strip() for cell in row[:2]] for row in rows[2:]] == [
        ["1", "no"], ["1", "yes"], ["2", "no"], ["2", "yes"],
    ]  # fmt: skip
    shares = [int(cell.strip().rstrip("%")) for cell in rows[2][4:]]
    assert len(shares) == 5 and all(share >= 0 for share in shares) and 97 <= sum(shares) <= 103


@pytest.mark.slow
def test_the_demo_can_be_trained(tmp_path):
    """All four stages, a few steps of each, into a folder that the library loads and measures."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for method in ("bvllm", "two_tokens"):
        out = subprocess.run(
            [
                sys.executable, EXAMPLES / "train_demo.py", "--scale", "0.02", "--method", method,
                "--out", tmp_path / "demo", "--work", tmp_path / "work",
            ],
            capture_output=True, text=True, check=True, env=environment,
        ).stdout  # fmt: skip
        for stage in ("tower", "reading") if method == "bvllm" else ("reading",):
            losses = [float(loss) for loss in re.findall(rf"{stage} .*loss (\d+\.\d+)", out)]
            assert losses[-1] < losses[0], out
    assert "tower" not in out  # it was kept
    model = bvllm.load(tmp_path / "demo")
    assert list(with_baselines(model, tmp_path / "demo")) == ["bvllm", "two_tokens"]
    answer = bvllm.ask(model, EXAMPLES / "needles.mp4", "What digit is red?", max_new_tokens=4)
    assert answer.trace.num_tokens <= 16


@pytest.mark.slow
def test_learning_from_answers_can_be_tried(tmp_path):
    """Each way a few steps, from a reader of a few steps; once more it takes what is there."""
    command = [
        sys.executable, EXAMPLES / "learn_from_answers.py", "--quick", "--videos", "1",
        "--seeds", "1", "--work", tmp_path / "work", "--out", tmp_path / "told.md",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = []
    for _ in range(2):
        subprocess.run(command, check=True, env=environment, capture_output=True)
        told.append((tmp_path / "told.md").read_text())
    assert told[0] == told[1]
    assert len(re.findall(r"^\| .*(\d\.\d\d \| ){4}", told[0], re.M)) > 12


@pytest.mark.slow
def test_its_scout_can_be_trained_and_measured(tmp_path):
    """Both stages, a few steps of each; then one short video of each kind."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True, text=True, check=True, env=environment,
        ).stdout  # fmt: skip

    scout = tmp_path / "demo_scout"
    out = run(EXAMPLES / "train_scout.py", "--scale", "0.02", "--out", scout)
    for stage in ("scout", "selection"):
        losses = [float(loss) for loss in re.findall(rf"{stage} .*loss (\d+\.\d+)", out)]
        assert losses[-1] < losses[0], out
    out = run(EXAMPLES / "scout.py", "--frames", "32", "--videos", "1", "--adapter", scout)
    passes = [float(count) for count in re.findall(r"^scout  .*?\]  \S+ +(\S+)", out, re.M)]
    assert len(passes) == 3 and max(passes) <= 4, out
