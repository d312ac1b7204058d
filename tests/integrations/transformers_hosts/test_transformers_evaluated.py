"""Tables of questions put to hosts of transformers, and to the paper's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from media import write_video
from processors import PROCESSORS, model, processor
from tiny_hosts import llama_vid, videollama2, wrap_small
from tiny_scouts import tiny_clip

import bvllm_adapters as bvllm
from bvllm_adapters.conversation import ask_batch, open_video
from bvllm_adapters.evaluation import evaluate_file, likelihood
from bvllm_adapters.evaluation.likelihood import token_ids

ROWS = [
    {"video": "a.mp4", "question": "Who?", "options": ["a cat", "the dog"], "answer": "B"},
    {"video": "b.mp4", "question": "What is it?", "options": ["x", "y", "zz"], "answer": 2},
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    write_video(folder / "a.mp4", frames=40)
    write_video(folder / "b.mp4", frames=30, first=60)
    file = folder / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def made(name: str, folder: Path) -> tuple[Any, Any]:
    """A tiny model of this host under a budget, with its processor."""
    if name in PROCESSORS:
        return bvllm.wrap(model(name), max_tokens=12), processor(name)
    host, its_processor = {"llama_vid": llama_vid, "videollama2": videollama2}[name](folder)
    return wrap_small(host), its_processor


@pytest.mark.parametrize("by", ["letter", "likelihood"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llama_vid", "videollama2"])
def test_every_host_answers_a_table(name: str, by: Any, table: Path, tmp_path: Path) -> None:
    host, its_processor = made(name, tmp_path)
    settings: dict[str, Any] = {"processor": its_processor, "by": by, "max_new_tokens": 4}
    found = evaluate_file(host, table, fps=2.0, **settings)
    assert not found.summary.errors and found.summary.whole is not None, found.summary.reasons
    assert found.summary.over == 0 and 0 < found.summary.most_tokens <= 12
    if by == "likelihood":
        batched = evaluate_file(host, table, fps=2.0, batch_size=5, **settings)
        for row, same in zip(found.rows, batched.rows, strict=True):
            assert row["likelihoods"] == pytest.approx(same["likelihoods"], abs=1e-3)
            assert max(row["likelihoods"]) < 0


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llama_vid", "videollama2"])
def test_a_likelihood_is_that_of_saying_it(
    name: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model says of its own accord, with the probabilities that generate() tells, has the
    same ones when it is put into its mouth, beside something longer."""
    host, its_processor = made(name, tmp_path)
    video = open_video(host, table.parent / "a.mp4", processor=its_processor, fps=2.0)
    (answer,) = ask_batch([(video, "Who?")], max_new_tokens=3, do_sample=False, output_logits=True)
    said = answer.generated.sequences[0].tolist()
    steps = zip(answer.generated.logits, said, strict=True)
    wanted = sum(float(logits[0].float().log_softmax(-1)[token]) for logits, token in steps)
    texts = {"said": said, "longer": token_ids(its_processor.tokenizer, "the dog in the garden")}
    monkeypatch.setattr(likelihood, "token_ids", lambda tokenizer, text: texts[text])
    (_, found), (_, longer) = likelihood.likelihoods([(video, "Who?")] * 2, [*texts])
    assert found.total == pytest.approx(wanted, abs=1e-3)
    assert (found.tokens, longer.tokens) == (len(said), len(texts["longer"]))
    assert found.total / found.tokens > longer.total / longer.tokens


def test_a_scout_reads_the_question_and_no_options(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = bvllm.RelevanceSelector.from_pretrained(tiny_clip(tmp_path / "scout"))
    host = bvllm.wrap(model("qwen2_5_vl"), max_tokens=12, selector=selector)
    read: list[Any] = []
    forward = type(selector).forward

    def heard(self: Any, cls: Any, question: Any, **more: Any) -> Any:
        read.append(more.get("query"))
        return forward(self, cls, question, **more)

    monkeypatch.setattr(type(selector), "forward", heard)
    evaluate_file(host, table, processor=processor("qwen2_5_vl"), fps=2.0, max_new_tokens=2)
    assert read == ["Who?", "What is it?"]
