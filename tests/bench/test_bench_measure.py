"""A model measured with a budget and without, on a real clip."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from media import write_damaged, write_video

import bvllm_adapters as bvllm
from bvllm_adapters.bench import published
from bvllm_adapters.bench.counted import Counter, Setting
from bvllm_adapters.bench.fits import too_large
from bvllm_adapters.bench.measure import bench, count
from bvllm_adapters.bench.rows import FURTHER_TOKEN, TOTAL
from bvllm_adapters.bench.shapes import flops_of
from bvllm_adapters.cli.main import main
from bvllm_adapters.evaluation.needle import DEMO_VIDEO
from bvllm_adapters.video.read import VideoError, VideoWarning
from bvllm_qwen2 import HOST

NEW = 5
BUDGET = 3  # fewer than the 4 tokens of one frame, so that frames are chosen and tokens merged
STAGES = "decode preprocess tower selector merge sampler budget projection prefill generate".split()
OWN_STAGES = "decode preprocess tower projection prefill generate".split()


@pytest.fixture(scope="module")
def demo():
    return HOST.demo()


@pytest.fixture(scope="module")
def rows(demo):
    return bench(*demo, frames=[32, 16], repeats=2, new_tokens=NEW, max_tokens=BUDGET)


def found(rows, stage, wrapped, frames=16):
    (row,) = (
        row for row in rows if (row.stage, row.wrapped, row.frames) == (stage, wrapped, frames)
    )
    return row


def test_rows_are_complete(rows):
    groups = itertools.groupby(rows, key=lambda row: (row.frames, row.wrapped))
    stages = {key: [row.stage for row in group] for key, group in groups}
    assert list(stages) == [(16, True), (16, False), (32, True), (32, False)]
    for (_, wrapped), names in stages.items():
        assert names == [*(STAGES if wrapped else OWN_STAGES), FURTHER_TOKEN, TOTAL]
    for row in rows:
        assert row.fastest <= row.seconds <= row.slowest and row.note is None
        if row.stage not in ("decode", "preprocess"):
            assert row.flops is not None
        if row.stage != FURTHER_TOKEN:
            assert row.peak_bytes > 0
        if row.stage != TOTAL:
            assert row.bytes > 0


def test_shares_sum_to_one(rows):
    for frames, wrapped in itertools.product((16, 32), (True, False)):
        shares = [row.share for row in rows if (row.frames, row.wrapped) == (frames, wrapped)]
        assert sum(share for share in shares if share is not None) == pytest.approx(1)
        assert shares[-2:] == [None, None]


def test_tokens_are_within_the_budget(rows):
    for row in rows:
        assert row.tokens == (BUDGET if row.wrapped else 16 * row.frames)


def test_the_tower_grows_with_the_frames_and_the_budgets_prefill_does_not(rows):
    for wrapped in (True, False):
        assert 2 * found(rows, "tower", wrapped).flops == found(rows, "tower", wrapped, 32).flops
    assert found(rows, "tower", True).flops == found(rows, "tower", False).flops
    assert found(rows, "prefill", True).flops == found(rows, "prefill", True, 32).flops
    assert 2 * found(rows, "prefill", False).flops < found(rows, "prefill", False, 32).flops


def test_a_further_token_is_a_mean_one(rows):
    for wrapped in (True, False):
        generate, token = (found(rows, name, wrapped) for name in ("generate", FURTHER_TOKEN))
        assert token.seconds == pytest.approx(generate.seconds / (NEW - 1))
        assert token.flops == generate.flops // (NEW - 1)


@pytest.fixture(scope="module")
def scouting():
    """A small model whose tower sees chosen frames only, and the others at half the size."""
    return published.build(
        "BvllmQwen2ForConditionalGeneration",
        device="cpu",
        sizes={
            "text_config": {
                "model_type": "qwen2",
                "vocab_size": 40000,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
            "vision_config": {
                "model_type": "bvllm_eva_vision",
                "image_size": 56,
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
            },
            "balanced_tokenizer": {
                "num_frames": 5,
                "tokens_per_frame": 8,
                "qformer_width": 48,
                "qformer_layers": 2,
                "qformer_heads": 4,
                "scout": {"image_size": 28, "width": 48},
            },
        },
    )


@pytest.mark.parametrize(
    ("model", "frames"),
    [("demo", 1), ("demo", 16), ("demo", 30), ("scouting", 20), ("following_scores", 30)],
)
def test_flops_are_those_of_a_real_answer(request, model, frames):
    """Counted from shapes alone; counting around the answer itself gives the same."""
    model, processor = request.getfixturevalue(model)
    model.requires_grad_(False)  # else the counter looks for gradients, of which there are none
    question = "Which digits are red?"
    lengths = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: lengths.append(inputs[0].shape[1])
    )
    answer, total = flops_of(
        lambda: bvllm.ask(
            model, DEMO_VIDEO, question, processor=processor, end=float(frames), max_tokens=3,
            max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        )
    )  # fmt: skip
    trace = answer.trace
    hook.remove()
    size = model.config.image_size
    frame = torch.empty(256, 256, 3, dtype=torch.uint8)
    setting = Setting(question, lengths[0] - 1, NEW, frame, torch.empty(1, 3, size, size))
    counted = Counter(model, setting)
    work = counted.wrapped(trace)
    assert ("scout" in work) == (model.balanced_tokenizer.scout is not None)
    # What the causal mask hides is counted around the answer too.
    prompt = setting.text_tokens + trace.num_tokens
    masked = counted.reading.pair * prompt * (prompt - 1) // 2
    flops = sum(done.flops or 0 for done in work.values())
    assert flops + masked == total
    # All layers attend, with keys and with values, over the whole width; keys may be narrower.
    llm = model.config.text_config
    assert counted.reading.pair == llm.num_hidden_layers * 2 * 2 * llm.hidden_size
    narrow = llm.hidden_size * llm.num_key_value_heads // llm.num_attention_heads
    assert counted.reading.cache_bytes == llm.num_hidden_layers * 2 * narrow * 4


@pytest.fixture(scope="module")
def following_scores(demo):
    """The demo model with as many frames as the scores ask for."""
    model = copy.deepcopy(demo[0])
    config = replace(model.balanced_tokenizer.config, frame_count="gap", max_frames=6)
    torch.manual_seed(0)
    return bvllm.wrap(model, config=config).eval(), demo[1]


def test_frames_that_follow_the_scores_are_counted(following_scores):
    rows = bench(*following_scores, frames=[16], repeats=1, new_tokens=2)
    assert found(rows, "selector", True).flops > 0 and found(rows, TOTAL, True).seconds > 0
    most = count(*following_scores, frames=[16], max_tokens=1000)
    config = following_scores[0].balanced_tokenizer.config
    assert found(most, TOTAL, True).tokens == 6 * config.tokens_per_frame


def test_a_video_of_fewer_frames_is_told_by_those_it_has(demo, tmp_path):
    clip = write_video(tmp_path / "slow.mp4", frames=10, fps=1, times=range(0, 20, 2))
    rows = bench(*demo, clip, frames=[16], repeats=1, new_tokens=2)
    assert {row.frames for row in rows} == {8}
    towers = [found(rows, "tower", wrapped, 8).flops for wrapped in (True, False)]
    assert towers[0] == towers[1]
    assert found(rows, TOTAL, False, 8).tokens == 8 * 16


def test_a_damaged_video_is_refused(demo, tmp_path):
    clip = write_damaged(tmp_path / "damaged.mp4", at=10)
    with (
        pytest.warns(VideoWarning),
        pytest.raises(VideoError, match=r"damaged.mp4: is damaged, wanted a whole file"),
    ):
        bench(*demo, clip, frames=[4], repeats=1, new_tokens=2)


def test_what_cannot_be_run_is_counted_and_says_why(demo):
    model, processor = demo
    context, model.config.text_config.max_position_embeddings = 32768, 200
    try:
        rows = bench(model, processor, frames=[16], repeats=1, new_tokens=2)
    finally:
        model.config.text_config.max_position_embeddings = context
    assert found(rows, TOTAL, True).seconds > 0
    row = found(rows, "prefill", False)
    assert row.seconds is None and row.peak_bytes is None and row.flops > 0
    assert "more than the 200 of its context" in row.note
    shares = [row.share for row in rows if not row.wrapped and row.share is not None]
    assert sum(shares) == pytest.approx(1)


def test_memory_is_looked_at_before(demo, monkeypatch):
    model, _ = demo
    setting = Setting("", 8, 2, torch.empty(4, 4, 3, dtype=torch.uint8), torch.empty(1, 3, 64, 64))
    work, tokens = Counter(model, setting).unwrapped(64)
    assert too_large(model, work, tokens, setting) is None
    monkeypatch.setattr("bvllm_adapters.bench.fits.free_memory", lambda device: 2**20)
    assert "0 GB are free" in too_large(model, work, tokens, setting)


def test_running_out_of_memory_is_a_note(demo, monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr("bvllm_adapters.bench.ways.ask_unwrapped", out_of_memory)
    rows = bench(*demo, frames=[4], repeats=1, new_tokens=2)
    assert found(rows, TOTAL, True, 4).seconds > 0
    row = found(rows, TOTAL, False, 4)
    assert row.seconds is None and row.flops > 0 and "too little memory" in row.note


def test_count_runs_nothing(demo):
    rows = count(*demo, frames=[16, 2048], new_tokens=NEW, max_tokens=BUDGET, note="why not")
    assert all(row.seconds is None and row.note == "why not" for row in rows)
    assert {row.tokens for row in rows if row.wrapped} == {BUDGET}
    # Of a long video, patches are not kept: the 4 chosen frames are looked at again.
    again, once = (found(rows, "tower", wrapped, 2048).flops for wrapped in (True, False))
    assert again - once == 4 * Counter(demo[0], _setting()).look(1)[1]


def _setting():
    frame = torch.empty(4, 4, 3, dtype=torch.uint8)
    return Setting("Who?", 8, NEW, frame, torch.empty(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"frames": []}, "frames: got none"),
        ({"frames": [0]}, "frames: got 0"),
        ({"repeats": 0}, "repeats: got 0"),
        ({"new_tokens": 0}, "new_tokens: got 0"),
    ],
)
def test_wrong_arguments(demo, arguments, told):
    with pytest.raises(ValueError, match=told):
        bench(*demo, **arguments)


def test_a_model_without_tokenizer():
    with pytest.raises(ValueError, match="model: got a Linear without BalancedTokenizer"):
        bench(torch.nn.Linear(2, 2), None)


def test_command(tmp_path, capsys):
    clip = str(Path(__file__).parents[2] / "examples" / "big_buck_bunny.mp4")
    rows, figure = tmp_path / "rows.json", tmp_path / "growth.svg"
    arguments = ["bench", clip, "--repeats", "1", "--new-tokens", "2", "--threads", "1"]
    assert main([*arguments, "--json", str(rows), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "video     big_buck_bunny.mp4 at 1 frame a second\n" in out
    assert "6 frames, " in out and "6 frames, 96 visual tokens: unwrapped" in out
    wanted = {"frames", "stage", "wrapped", "seconds", "flops", "peak_bytes", "tokens", "share"}
    for row in json.loads(rows.read_text()):
        assert wanted <= set(row)
    assert figure.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--json", "nowhere/rows.json"], "--json: got nowhere/rows.json"),
        (["--figure", "nowhere/growth.svg"], "--figure: got nowhere/growth.svg"),
        (["--threads", "0"], "--threads: got 0"),
        (["--device", "abacus"], "--device: got 'abacus'"),
        (["--host", "Nobody"], "host: got 'Nobody', wanted one of"),
        (["missing.mp4"], "missing.mp4"),
    ],
)
def test_wrong_options_are_told_in_one_line(capsys, arguments, told):
    assert main(["bench", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("bvllm: ") and told in error and "\n" not in error
