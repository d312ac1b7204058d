"""A frame selector that learns from answers alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Interrupted, Watch
from torch import Tensor

from bvllm_adapters.context import generators
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.qformer import QFormer
from bvllm_adapters.training.answers_alone import (
    EVENNESS,
    drawn,
    loss_by_frames,
    loss_by_sets,
    picking,
)
from bvllm_adapters.training.dry_run import dry_run
from bvllm_adapters.training.run import train, training_arguments

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
]
ALONE = {"train": ["frame_selector"], "answer_reads": 3, "batch_per_device": 1}
BY_SETS = {**ALONE, "selector_learns": "sets"}
LIKELIHOOD = "answer_likelihood"
CLS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
WORDS = torch.arange(3)


def selector_of(queries: int) -> FrameSelector:
    torch.manual_seed(0)
    qformer = QFormer(
        width=8, heads=2, layers=1, visual_width=8, vocab_size=10, ffn_width=16,
        cross_attention_frequency=1,
    )  # fmt: skip
    return FrameSelector(qformer, num_frames=queries)


def one_answers(selector: FrameSelector, frame: int, chosen: list[list[int]]) -> Any:
    """The loss of an answer that one frame shows; notes what was chosen."""

    def answer_loss() -> Tensor:
        (generator,) = generators(1, CLS.device)
        selection = selector(CLS, WORDS, generator=generator)
        chosen.append(selection.frame.tolist())
        return torch.tensor(0.1 if frame in chosen[-1] else 2.0)

    return answer_loss


@pytest.mark.parametrize("lesson", ["frames", "sets"])
def test_the_frame_that_answers_is_found(lesson: str) -> None:
    chosen: list[list[int]] = []
    selector = selector_of(2).train()
    answer_loss = one_answers(selector, 4, chosen)
    optimizer = torch.optim.Adam(selector.parameters(), lr=1e-2)
    told = []
    for step in range(40):
        if lesson == "frames":
            found = loss_by_frames(selector, answer_loss, [step], 4, words=3)
        else:
            found = loss_by_sets(selector, answer_loss, [step], 4)
        assert found is not None
        optimizer.zero_grad()
        found[0].backward()
        optimizer.step()
        told.append(found[1])
    assert 4 in selector.eval()(CLS, WORDS).frame
    if lesson == "frames":  # each is another one, whatever is likely
        assert all(len({frame for (frame,) in chosen[i : i + 4]}) == 4 for i in range(0, 160, 4))
    else:
        assert told[-1] > 0.9 > told[0]


def test_gradients_are_those_of_the_likelihood_on_average() -> None:
    selector = selector_of(1)
    (log_chosen,) = selector.scores(CLS, WORDS).log_softmax(dim=1)
    likelihood = torch.exp(-torch.where(torch.arange(6) == 4, 0.1, 2.0))
    evenness = -(log_chosen.exp() * log_chosen).sum()
    wanted = -(log_chosen.exp() * likelihood).sum() - EVENNESS * evenness

    def gradient(loss: Tensor) -> Tensor:
        parameters = list(selector.parameters())
        each = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([one.flatten() for one in each if one is not None])

    want = gradient(wanted)
    answer_loss = one_answers(selector, 4, [])
    found = [loss_by_sets(selector, answer_loss, [seed], 8) for seed in range(80)]
    got = gradient(torch.stack([one[0] for one in found if one is not None]).mean())
    assert torch.nn.functional.cosine_similarity(got, want, dim=0) > 0.9
    assert abs(float(got.norm() / want.norm()) - 1) < 0.3


def test_draws_follow_their_seed_and_leave_the_selector_as_it_was() -> None:
    selector = selector_of(2)
    before = selector.eval()(CLS, WORDS).frame.tolist()
    runs: list[list[list[int]]] = [[], []]
    for chosen in runs:
        loss_by_sets(selector, one_answers(selector, 4, chosen), [7], 5)
    assert runs[0] == runs[1]
    with pytest.raises(RuntimeError, match="no"), picking(selector, drawn):
        raise RuntimeError("no")
    assert selector(CLS, WORDS).frame.tolist() == before
    assert loss_by_sets(selector, lambda: torch.tensor(1.0), [], 2) is None  # chose nothing


@pytest.mark.parametrize(
    ("host", "lesson"), [("bvllm_qwen2", "frames"), ("bvllm_llama_vid", "sets")]
)
def test_a_run_moves_the_selector_alone(host: str, lesson: str, configured: Any) -> None:
    watch = Watch()
    config = configured(host, **ALONE, selector_learns=lesson, max_steps=2)
    model = train(config, callbacks=[watch])
    moved = watch.moved(model)
    assert moved
    assert all(name.startswith("balanced_tokenizer.frame_selector.") for name in moved)
    assert all(gradient.isfinite().all() for step in watch.gradients for gradient in step.values())


@pytest.mark.parametrize("lesson", [pytest.param("frames", marks=pytest.mark.slow), "sets"])
def test_resumed_run_equals_uninterrupted_one(lesson: str, configured: Any, tmp_path: Path) -> None:
    fields = {
        **ALONE,
        "selector_learns": lesson,
        "max_steps": 4,
        "global_batch": 2,
        "save_every": 2,
        "keep": None,
    }
    config = configured(**fields)
    whole = train(config).state_dict()

    broken = replace(config, output=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train(broken, callbacks=[Interrupted(step=3)])
    for name, value in train(broken, resume=True).state_dict().items():
        assert torch.equal(value, whole[name]), name
    state = json.loads((broken.output / "checkpoint-4" / "trainer_state.json").read_text())
    # A step of rows without a video has none.
    told = [each[LIKELIHOOD] for each in state["log_history"] if LIKELIHOOD in each]
    assert told
    assert all(0 < each < 1 for each in told)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer_reads": 1}, "answer_reads: got 1, wanted an int >= 2"),
        ({"selector_learns": "hard"}, "selector_learns: got 'hard', wanted one of"),
        (
            {"stage": "instruction", "train": []},
            "stage: got 'instruction' with selector_learns='sets'",
        ),
        ({"train": ["frame_selector", "projection"]}, "train: got .* wanted .'frame_selector'"),
        ({"batch_per_device": 2}, "batch_per_device: got 2 with selector_learns='sets', wanted 1"),
        ({"deepspeed": "zero2.json"}, "deepspeed: got .* with selector_learns='sets', wanted None"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str, configured: Any) -> None:
    with pytest.raises(ValueError, match=message):
        configured(**{**BY_SETS, **fields})


def test_several_devices_are_refused(configured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="selector_learns: got 'sets' on 2 devices"):
        training_arguments(configured(**BY_SETS), 1)


def test_a_dry_run_says_how_often_a_row_is_read(configured: Any) -> None:
    told = "\n".join(dry_run(configured(**BY_SETS)))
    assert "reads      3 of each row, by sets" in told
