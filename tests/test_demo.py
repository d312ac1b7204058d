"""The trained model that ships: what it answers, and that it is as small as it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import bvllm_adapters as bvllm
from bvllm_adapters.bench.shapes import flops_of
from bvllm_adapters.cli.main import main
from bvllm_adapters.evaluation.methods import METHODS
from bvllm_adapters.evaluation.needle import DEMO_VIDEO, demo_haystack, make_haystack
from bvllm_adapters.hosts.find import find_host
from bvllm_qwen2.shim import DEMO

DEMO_SCOUT = DEMO.with_name("demo_scout")
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


def test_its_commands_work_outside_of_the_clone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bvllm_adapters.cli.ask.run", lambda options: 0)
    assert main(["demo"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  bvllm")]
    assert len(lines) == len(demo_haystack().questions) - 1
    for line, question in zip(lines, demo_haystack().questions[1:], strict=True):
        command, verb, video, asked = shlex.split(line)
        assert (command, verb, asked) == ("bvllm", "ask", question.text)
        assert Path(video).is_absolute() and Path(video).is_file()


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


@pytest.fixture(scope="module")
def scouted():
    model, _ = find_host("BvllmQwen2ForConditionalGeneration").demo()
    return bvllm.wrap(model, adapter=DEMO_SCOUT)


def test_its_scout_saves_three_quarters_of_the_towers_work(scouted):
    size = scouted.image_size
    pixels = torch.zeros(8, 3, size, size)

    def flops(see):
        return flops_of(lambda: see(pixels))[1] / len(pixels)

    look, glance = flops(scouted.look), flops(scouted.balanced_tokenizer.scout)
    chosen = scouted.balanced_tokenizer.config.num_frames  # at most, for one question
    assert 480 * look >= 4 * (480 * glance + chosen * look)


def test_what_its_scout_chooses_is_enough_to_answer(demo, scouted, tmp_path):
    """Three videos of 240 frames, eight needles; examples/scout.py measures more of them."""
    _, processor = demo
    right = []
    for seed in range(3):
        haystack = make_haystack([seed, 3], num_frames=240, needles=8)
        haystack.write(tmp_path / "clip.mp4")
        video = bvllm.open_video(scouted, tmp_path / "clip.mp4", processor=processor)
        for number, question in enumerate(haystack.questions, start=1):
            right.append(video.ask(question.text).text == question.answer)
            assert video.tower_passes <= 4 * number
    assert sum(right) / len(right) >= 0.8


def test_the_files_are_small_and_safe():
    files = [file for file in DEMO.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".md"}
    assert (DEMO / "model.safetensors").stat().st_size <= 8 * MB
    baselines = sorted((DEMO / "baselines").iterdir())
    assert [file.stem for file in baselines] == sorted(METHODS[1:])
    assert sum(file.stat().st_size for file in baselines) <= 8 * MB
    scout = sorted(DEMO_SCOUT.iterdir())
    assert {file.suffix for file in scout} == {".safetensors", ".json", ".md"}
    assert sum(file.stat().st_size for file in scout) <= 3 * MB
