"""The trained model that ships: what it answers, and that it is as small as it says."""

from __future__ import annotations

import re

import pytest

import bvllm_adapters as bvllm
from bvllm_adapters.cli import main
from bvllm_adapters.evaluation.methods import METHODS
from bvllm_adapters.hosts import find_host
from bvllm_adapters.needle import DEMO_VIDEO, demo_haystack, make_haystack
from bvllm_qwen2.shim import DEMO

MB = 10**6


@pytest.fixture(scope="module")
def demo():
    return find_host("BvllmQwen2ForConditionalGeneration").demo()


def test_the_command_answers_rightly_and_shows_the_needle(capsys):
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    haystack = demo_haystack()
    (needle,) = (haystack.needles[i] for i in haystack.questions[0].needles)
    answer = re.search(r"^answer    (.+)$", out, re.M)[1]
    assert answer == haystack.questions[0].answer == str(needle.digit)
    assert f"The right answer is {needle.digit}: a {needle.color} {needle.digit}" in out
    decoded, chosen = re.search(r"frames    (\d+) decoded, (\d+) chosen", out).groups()
    assert (int(decoded), int(chosen) <= 4) == (64, True)
    rows = re.findall(r"^ +(\d+) +\d+\.\d\d +(\d) +(\d+)$", out, re.M)
    assert len(rows) == int(chosen)
    assert set(needle.seconds) & {int(frame) for frame, *_ in rows}
    total, budget = re.search(r"(\d+) visual tokens of a budget of (\d+)", out).groups()
    assert sum(int(tokens) for *_, tokens in rows) == int(total) <= int(budget) == 16


def test_the_video_is_the_haystack_it_says():
    video = bvllm.read_video(DEMO_VIDEO, fps=1.0)
    assert len(video.frames) == 64
    for decoded, made in zip(video.frames, demo_haystack().render(range(64), 256), strict=True):
        assert abs(decoded.astype(int) - made).mean() < 8


def test_it_answers_fixed_videos(demo, tmp_path):
    """Six videos, three needles and eight; the model card's accuracy is about 0.9."""
    model, processor = demo
    right, tokens = [], []
    for seed in range(6):
        haystack = make_haystack([seed, 2], num_frames=48, needles=3 if seed % 2 else 8)
        haystack.write(tmp_path / "clip.mp4")
        for question in haystack.questions:
            answer = bvllm.ask(model, tmp_path / "clip.mp4", question.text, processor=processor)
            right.append(answer.text == question.answer)
            tokens.append(answer.trace.num_tokens)
    assert sum(right) / len(right) >= 0.8
    assert max(tokens) <= 16


def test_a_question_changes_which_frames_it_sees(demo):
    model, processor = demo
    chosen = set()
    for question in demo_haystack().questions:
        answer = bvllm.ask(model, DEMO_VIDEO, question.text, processor=processor)
        chosen.add(tuple(frame.frame for frame in answer.trace.frames))
    assert len(chosen) >= 4


def test_ask_without_a_model_asks_it(capsys):
    question = demo_haystack().questions[2]
    assert main(["ask", str(DEMO_VIDEO), question.text]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^answer    (.+)$", out, re.M)[1] == question.answer
    assert "trained on the needle task alone" in out


def test_the_files_are_small_and_safe():
    files = [file for file in DEMO.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".md"}
    assert (DEMO / "model.safetensors").stat().st_size <= 8 * MB
    baselines = sorted((DEMO / "baselines").iterdir())
    assert [file.stem for file in baselines] == sorted(METHODS[1:])
    assert sum(file.stat().st_size for file in baselines) <= 8 * MB
