"""lmms-eval itself runs our model by its entry point, offline, on tasks that lie beside this file.

lmms-eval wants an environment of its own: `nox -f .ci/noxfile.py -s lmms_eval`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny_scouts import tiny_clip

import bvllm_lmms_eval
from bvllm_adapters.hosts.find import find_host

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tests" / "data" / "lmms_eval"
NEEDLES = ROOT / "examples" / "needles.mp4"

if find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed", allow_module_level=True)


def run(
    tmp_path: Path, tasks: str, *options: str, model_args: str = "max_tokens=16,dtype=float32",
    include: Path = TASKS, **environment: str,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Of `python -m lmms_eval`: the results of each task, and all that it says."""
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    done = subprocess.run(
        [
            sys.executable, "-m", "lmms_eval", "--model", "bvllm", "--model_args", model_args,
            "--tasks", tasks, "--include_path", str(include), "--device", "cpu",
            "--output_path", str(tmp_path / "out"), *options,
        ],
        env={**os.environ, **dict.fromkeys(offline, "1"), "HF_HOME": str(tmp_path / "hf"),
             **environment},
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-5000:]
    (file,) = (tmp_path / "out").rglob("*_results.json")  # an error ends it with 0 too
    results: dict[str, Any] = json.loads(file.read_text())["results"]
    return results, told


def test_the_entry_point_is_published_and_lists_one_model() -> None:
    (point,) = entry_points(group="lmms_eval.models", name="bvllm")
    (manifest,) = point.load()()
    assert (manifest.model_id, manifest.aliases) == ("bvllm", ())
    (printed,) = subprocess.run(
        [sys.executable, "-m", "bvllm_lmms_eval"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert Path(printed) == bvllm_lmms_eval.TASKS


def test_chat_messages_in_batches_and_in_rounds(tmp_path: Path) -> None:
    results, told = run(tmp_path, "local_needles,local_needles_rounds", "--batch_size", "2")
    assert results["local_needles"]["right,none"] == 1.0
    assert results["local_needles_rounds"]["right,none"] == 1.0
    assert "5 prompts about 1 videos or images, visual tokens of each at most 16" in told
    assert "15 prompts about 5 videos or images" in told  # a conversation each
    assert len(re.findall("over it: 0", told)) == 2
    assert told.count("image_aspect_ratio is left out") == 1


def test_texts_and_choices_by_likelihood_of_a_model_with_an_adapter(tmp_path: Path) -> None:
    adapter = ROOT / "integrations" / "bvllm_qwen2" / "demo_scout"
    results, told = run(
        tmp_path, "local_needles,local_needles_choice", "--batch_size", "3", "--force_simple",
        model_args=f"pretrained=demo,adapter={adapter},max_tokens=8,fps=1,dtype=float32",
    )  # fmt: skip
    assert results["local_needles"]["right,none"] == 1.0
    assert results["local_needles_choice"]["acc,none"] == 1.0
    assert "15 prompts about 1 videos or images, visual tokens of each at most 8" in told


def test_a_model_of_transformers_whose_frames_a_scout_chooses(tmp_path: Path) -> None:
    name = "Qwen2_5_VLForConditionalGeneration"
    host: Any = find_host(name)
    (tmp_path / "qwen").mkdir()
    host.tiny(tmp_path / "qwen", name)
    scout = tiny_clip(tmp_path / "scout")
    results, told = run(
        tmp_path, "local_needles", "--batch_size", "2", "--limit", "3",
        model_args=f"pretrained={tmp_path / 'qwen'},max_tokens=24,scout={scout},fps=0.5",
    )  # fmt: skip
    assert results["local_needles"]["right,none"] == 0.0  # of random weights
    assert re.search(r"3 prompts about 1 videos .* at most 24, 24\.0 on average", told)


def test_the_papers_tasks_that_lmms_eval_has_not(tmp_path: Path) -> None:
    """With data of the same form, about a video that is here."""
    vnbench, open_ = tmp_path / "vnbench", tmp_path / "qa"
    for folder in (vnbench / "VNBench_new", open_ / "videos"):
        folder.mkdir(parents=True)
        (folder / "video7.mp4").symlink_to(NEEDLES)
    options = ["6", "4", "8", "1"]
    (vnbench / "VNBench-main-4try.json").write_text(
        json.dumps(
            [
                {
                    "video": "/VNBench_new/video7.mp4", "question": "What digit is red?",
                    "options": options[n:] + options[:n], "gt": "6", "gt_option": "ADCB"[n],
                    "needle_time": [4], "length": 60, "type": kind, "try": n,
                }
                for kind in ("ret_edit1", "ord_edit1", "cnt_edit1")
                for n in range(4)
            ]
        )
    )  # fmt: skip
    rows = [{"id": 0, "video_id": 7, "question": "what digit is red?", "answer": "six"}]
    (open_ / "test_qa.json").write_text(json.dumps(rows))
    results, told = run(
        tmp_path, "vnbench,msvd_qa,msrvtt_qa", "--batch_size", "4",
        include=bvllm_lmms_eval.TASKS,
        VNBENCH=str(vnbench), MSVD_QA=str(open_), MSRVTT_QA=str(open_),
    )  # fmt: skip
    for metric in ("overall", "retrieval", "ordering", "counting", "single_tries"):
        assert 0 <= results["vnbench"][f"vnbench_{metric},none"] <= 1
    for task in ("msvd_qa", "msrvtt_qa"):
        assert {0.0, 1.0} >= {
            results[task][f"{metric},none"] for metric in ("exact_match", "answer_in_reply")
        }
    assert "14 prompts about 2 videos or images" in told  # two folders, one file in each
