"""examples/table10.py: its counts against real runs of small models, its guards, and all of it."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from bvllm_adapters.bench.counted import Counter, Setting
from bvllm_adapters.bench.reading import Reading
from bvllm_adapters.bench.shapes import flops_of, in_shape

EXAMPLES = Path(__file__).parents[2] / "examples"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("table10", EXAMPLES / "table10.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["table10"] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["table10"]


@pytest.fixture
def table(example, tmp_path):
    """Of small models, once each, for as long as it takes."""
    return example.Table(CPU, True, 1, time.monotonic() + 600, tmp_path / "rows.json")


def result(example, flops=1):
    return example.Result("B-VLLM", "as published", 4, 24, 576, {"tower": flops})


def test_tokens_of_qwen2_vl(example):
    """As qwen-vl-utils and the published processor count them, for 4, 8 and 12 minutes."""
    tokens = {
        name: [pairs * rows * columns for pairs, rows, columns in lengths]
        for name, lengths in example.QWEN2_VL.items()
    }
    assert tokens == {
        "224 x 224": [7680, 15360, 23040],
        "336 x 336": [17280, 34560, 51840],
        "qwen-vl-utils, 1 fps": [22800, 28800, 43200],
        "qwen-vl-utils, 2 fps": [28800, 46080, 46080],
        "360 * 420 px, 1 fps": [21600, 43200, 64800],
        "360 * 420 px, 2 fps": [43200, 69120, 69120],
        "360p, 1 fps": [35880, 71760, 107640],
        "720p, 1 fps": [86400, 172800, 259200],
        "720p, older limit": [143520, 287040, 430560],
    }


@pytest.mark.parametrize("compiled", [False, True])
def test_flops_of_qwen2_vl(example, table, compiled):
    """With a static cache nothing is compiled on a CPU, but the answer is as long."""
    model = example.qwen2_vl_model(table, CPU)
    grid = (3, 2, 5)
    answer = example.qwen2_vl_answer(table, model, grid, compiled)
    _, total = flops_of(answer)
    reading = Reading.of(in_shape(model))
    prompt = example.TEXT_TOKENS + 3 * 2 * 5
    further = range(prompt + 1, prompt + table.new_tokens)
    answering = reading.flops(1, prompt) + sum(reading.flops(n, n) for n in further)
    masked = reading.pair * prompt * (prompt - 1) // 2  # which counting around the answer counts
    tower = example.vit_flops(model.config.vision_config, *grid)
    flops = tower + answering + masked
    if compiled:  # a static cache is read whole, with the room for tokens that are still to come
        assert flops < total < 1.1 * flops
    else:
        assert flops == total


def test_true_size_of_qwen2_vl(example):
    """Of one patch: 32 blocks of 12 x 1280^2 weights and attention to 760 patches; 7B in all."""
    meta = torch.device("meta")
    table = example.Table(meta, False, 1, 0.0)
    model = example.qwen2_vl_model(table, meta)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(8.29e9, rel=1e-3)
    flops = example.vit_flops(model.config.vision_config, 120, 10, 19)
    blocks = 120 * 760 * 32 * (24 * 1280**2 + 4 * 760 * 1280)
    assert flops == pytest.approx(blocks, rel=0.02)


@pytest.mark.parametrize("variant", ["as published", "patches again", "half skipped", "scout"])
def test_flops_of_bvllm(example, table, variant):
    frames, passes = (
        33,
        {"patches again": 33 + 32, "half skipped": 17, "scout": 32}.get(variant, 33),
    )
    model = example.bvllm_model(table, CPU, scout=variant == "scout")
    answer = example.bvllm_answer(table, model, variant, frames, False)
    _, total = flops_of(answer)
    frame, pixels = torch.empty(1, 1, 3, dtype=torch.uint8), torch.empty(1, 3, 224, 224)
    setting = Setting(example.QUESTION, example.TEXT_TOKENS, table.new_tokens, frame, pixels)
    counted = Counter(model, setting)
    trace = example.replace(counted.expected(frames), tower_passes=passes)
    assert len(trace.frames) == 32 and trace.num_tokens == example.BUDGET
    prompt = example.TEXT_TOKENS + trace.num_tokens
    masked = counted.reading.pair * prompt * (prompt - 1) // 2
    flops = sum(done.flops or 0 for done in counted.wrapped(trace).values())
    assert flops + masked == total


def test_rows_are_written_one_by_one(example, table, capsys):
    answers = []
    for count in (1, 2):
        table.add(result(example), lambda: lambda: answers.append(torch.ones(1)))
        assert len(json.loads(table.file.read_text())) == count
    assert len(answers) == 4  # to warm up, and once
    row = table.results[0]
    assert row.note is None and row.fastest <= row.seconds <= row.slowest
    assert "REDUCED" not in capsys.readouterr().out


def test_a_row_that_fails_is_noted_and_the_next_one_comes(example, table):
    def fail(error):
        def prepare():
            raise error

        return prepare

    table.add(result(example), fail(torch.cuda.OutOfMemoryError("too large")))
    table.add(result(example), fail(ValueError("wrong\nand more")))
    table.add(result(example), lambda: lambda: None)
    assert [row.note for row in table.results] == ["out of memory", "ValueError: wrong", None]


def test_time_that_is_over_stops_a_row_and_begins_none(example, table):
    table.deadline = time.monotonic() + 0.2
    begin = time.monotonic()
    table.add(result(example), lambda: lambda: time.sleep(30))
    table.add(result(example), lambda: lambda: None)
    assert time.monotonic() - begin < 20
    notes = [row.note for row in table.results]
    assert notes[0] == "stopped: the time was over" and notes[1].startswith("not begun: 0 s left")


def test_a_row_that_would_take_too_long_is_not_begun(example, table):
    table.add(result(example), lambda: lambda: time.sleep(0.01))
    table.add(result(example, flops=10**9), lambda: lambda: None)
    assert "needed" in table.results[1].note
    table.next_until(table.deadline)
    table.add(result(example, flops=10**9), lambda: lambda: None)
    assert table.results[2].note is None


@pytest.mark.slow
def test_all_of_it_in_small(example, tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert example.main(["--reduced", "--repeats", "2", "--limit", "100", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert len(rows) == 3 * (len(example.VARIANTS) + len(example.QWEN2_VL))
    measured = [row for row in rows if row["seconds"] is not None]
    assert {row["model"] for row in measured} == {"B-VLLM", "Qwen2-VL"}
    for row in measured:
        assert row["note"] is None and row["reduced"] and row["repeats"] == 2
        assert set(row["stages"]) >= {"tower", "prefill", "generate"}
    for row in rows:
        assert row in measured or row["note"].startswith(("not begun", "stopped"))
    out = capsys.readouterr().out
    assert "REDUCED model" in out and "Qwen2-VL as the paper has it" in out
    assert "    2.20    4.39    3.32" in out
