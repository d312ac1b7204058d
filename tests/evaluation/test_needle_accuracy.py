"""The needle task asked of the model that ships."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import bvllm_adapters as bvllm
from bvllm_adapters.cli.main import main
from bvllm_adapters.evaluation.methods import METHODS
from bvllm_adapters.evaluation.needle import make_haystack
from bvllm_adapters.evaluation.needle_accuracy import evaluate, table
from bvllm_adapters.evaluation.shipped import with_baselines
from bvllm_adapters.hosts.find import find_host


@pytest.fixture(scope="module")
def demo():
    return find_host("BvllmQwen2ForConditionalGeneration").demo()


def test_rows_count_what_asking_gives(demo, tmp_path):
    """The same videos, question by question, through the public `ask`."""
    model, processor = demo
    (row,) = evaluate(
        {"bvllm": model}, processor, frames=(24,), needles=4, videos=3, seed=7, max_tokens=10
    )
    right, tokens, found = [], [], []
    for number in range(3):
        haystack = make_haystack([7, 24, number], num_frames=24, needles=4)
        haystack.write(tmp_path / "clip.mp4")
        for question in haystack.questions:
            answer = bvllm.ask(
                model, tmp_path / "clip.mp4", question.text, processor=processor, max_tokens=10
            )
            right.append(answer.text == question.answer)
            tokens.append(answer.trace.num_tokens)
            seen = {frame.frame for frame in answer.trace.frames if frame.tokens}
            asked = [haystack.needles[i] for i in question.needles]
            found.append(sum(bool(seen & set(n.seconds)) for n in asked) / len(asked))
    assert row.answers == len(right)
    assert row.accuracy == pytest.approx(sum(right) / len(right))
    assert row.tokens == pytest.approx(sum(tokens) / len(tokens))
    assert row.recall == pytest.approx(sum(found) / len(found))
    assert (row.budget, row.videos, row.frames, row.needles) == (10, 3, 24, 4)
    assert row.low < row.accuracy <= row.high


def test_a_model_over_its_budget_is_caught(demo):
    model, processor = demo

    class Greedy(bvllm.BalancedTokenizer):
        def forward(self, *inputs, max_tokens=None, **options):
            return super().forward(*inputs, max_tokens=16, **options)

    before = type(model.balanced_tokenizer)
    model.balanced_tokenizer.__class__ = Greedy
    try:
        with pytest.raises(RuntimeError, match=r"max_tokens: got [45678] visual tokens, .* most 3"):
            evaluate({"bvllm": model}, processor, frames=(16,), needles=8, videos=1, max_tokens=3)
    finally:
        model.balanced_tokenizer.__class__ = before


def test_what_cannot_be_measured_is_refused(demo):
    model, processor = demo
    with pytest.raises(ValueError, match="models: got none"):
        evaluate({}, processor)
    with pytest.raises(ValueError, match="videos: got 0"):
        evaluate({"bvllm": model}, processor, videos=0)
    with pytest.raises(ValueError, match="seed: got -1"):
        evaluate({"bvllm": model}, processor, seed=-1)
    with pytest.raises(ValueError, match="models: got a Linear without tokenizer"):
        evaluate(
            {"other": torch.nn.Linear(1, 1)}, processor, frames=(16,), videos=1,
            watch=lambda haystack: bvllm.FrameFeatures(torch.ones(1, 2), torch.ones(1, 1, 2)),
        )  # fmt: skip


def test_baselines_share_the_tower_and_nothing_else(demo):
    model, _ = demo
    models = with_baselines(model, Path(model.name_or_path))
    assert tuple(models) == METHODS
    assert models["bvllm"] is model
    tower = {id(parameter) for parameter in model.vision_tower.parameters()}
    everything = {id(parameter) for parameter in model.parameters()}
    for name in METHODS[1:]:
        own = {id(parameter) for parameter in models[name].parameters()}
        assert own & everything == tower
        head = models[name].language_model
        assert head.lm_head.weight is head.model.embed_tokens.weight


def test_a_folder_without_baselines_gives_the_model_alone(demo, tmp_path):
    assert list(with_baselines(demo[0], tmp_path)) == ["bvllm"]
    assert list(with_baselines(demo[0], None)) == ["bvllm"]


def test_the_command_writes_rows(tmp_path, capsys):
    file = tmp_path / "rows.json"
    arguments = ["evaluate", "needle", "--videos", "2", "--frames", "16,20", "--seed", "3"]
    assert main([*arguments, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["method"], row["frames"]) for row in rows] == [
        (method, frames) for frames in (16, 20) for method in METHODS
    ]
    for row in rows:
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert 0 <= row["recall"] <= 1
        assert 1 <= row["tokens"] <= row["budget"] == 16
        assert (row["videos"], row["needles"]) == (2, 3)
    out = capsys.readouterr().out
    assert len(re.findall(r"^(bvllm|uniform|random|two_tokens|no_question) ", out, re.M)) == 10


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--needles", "1"], "needles: got 1, wanted an int from 2 to 10"),
        (["--frames", "8", "--needles", "5"], "num_frames: got 8, wanted an int >= 10"),
        (["--json", "/nowhere/at/all.json"], "--json: got /nowhere/at/all.json"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_problems_are_told_in_one_line(arguments, told, capsys):
    assert main(["evaluate", "needle", "--videos", "1", *arguments]) == 1
    assert told in capsys.readouterr().err


def test_lengths_that_are_none_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "needle", "--frames", "64,many"])
    assert "got '64,many', wanted counts as 32,64" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_row(demo):
    model, processor = demo
    rows = evaluate({"bvllm": model}, processor, frames=(16, 18), videos=1)
    lines = table(rows).splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:3] == ["method", "frames", "needles"]
    assert lines[2].split()[:3] == ["bvllm", "18", "3"]
