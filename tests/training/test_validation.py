"""Rows that are looked at on the way: their loss is theirs alone, and changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import HOSTS, ROWS, Watch, talk

from bvllm_adapters.training.run import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


class Validated(Watch):
    """And the steps and losses of validation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found.append((state.global_step, kwargs["metrics"]["eval_loss"]))


@pytest.fixture
def other(data: Any) -> list[dict[str, Path]]:
    file = data.folder / "validation.json"
    file.write_text(json.dumps(ROWS[:3]))
    return [{"file": file}]


@pytest.mark.parametrize("host", HOSTS)
def test_each_n_steps_and_after_the_last(host: str, configured: Any, other: Any) -> None:
    watch = Validated()
    config = configured(host, validation=other, validate_every=2, max_steps=3, save_every=3)
    model = train(config, callbacks=[watch])
    assert [step for step, _ in watch.found] == [2, 3]
    assert watch.found[0][1] != watch.found[1][1]
    state = json.loads((config.output / "checkpoint-3" / "trainer_state.json").read_text())
    logged = [(each["step"], each["eval_loss"]) for each in state["log_history"]
              if "eval_loss" in each]  # fmt: skip
    assert logged == watch.found

    # The last is what the model itself says of the rows, one by one.
    from bvllm_adapters.context import asking
    from bvllm_adapters.hosts.find import host_of
    from bvllm_adapters.training.rows import read_rows
    from bvllm_adapters.training.samples import Collate, Samples

    served: Any = host_of(model)
    training = served.training(served.processor(Path(config.model)))
    samples = Samples.of(config, read_rows(config.validation), training)
    losses = []
    for i in range(3):
        sample: Any = samples[0, i]
        batch = Collate(training)([sample])
        with torch.no_grad(), asking(batch["questions"]):
            unsaid = ("questions", "seeds", "skipped", "drawn")
            losses.append(model(**{k: v for k, v in batch.items() if k not in unsaid}).loss.item())
    assert watch.found[1][1] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_a_step_that_is_validated_and_last_is_so_once(configured: Any, other: Any) -> None:
    watch = Validated()
    train(configured(validation=other, validate_every=1, max_steps=2), callbacks=[watch])
    assert [step for step, _ in watch.found] == [1, 2]
    watch = Validated()
    config = configured(validation=other, save_every=9, max_steps=2)
    train(replace(config, output=config.output / "other"), callbacks=[watch])
    assert [step for step, _ in watch.found] == [2]


def test_it_changes_nothing_and_is_the_same_each_time(
    configured: Any, other: Any, tmp_path: Path
) -> None:
    fields = {"stage": "instruction", "lora": {"rank": 2, "alpha": 4, "dropout": 0.3}}
    fields |= {"max_steps": 3, "global_batch": 2, "batch_per_device": 2}
    alone = train(configured(**fields, output=tmp_path / "alone")).state_dict()
    watches = []
    for name in ("one", "two"):
        watches.append(Validated())
        config = configured(
            **fields, validation=other, validate_every=1, output=tmp_path / name, workers=1
        )
        found = train(config, callbacks=[watches[-1]]).state_dict()
        assert all(torch.equal(value, alone[key]) for key, value in found.items())
    assert watches[0].found == watches[1].found
    assert len(watches[0].found) == 3


def test_each_row_must_be_readable(configured: Any, other: Any, data: Any) -> None:
    file, good = other[0]["file"], ROWS[2]
    (data.folder / "broken.mp4").write_bytes(b"nothing")
    said = talk("<video>what?", "a cat")
    for rows, message in (
        ([], "validation: got no rows"),
        ([good, "nonsense"], r"validation: got .*\[1\]: got str"),
        ([good, {"video": "gone.mp4", "conversations": said}], r"validation: .*gone\.mp4"),
        ([good, {"video": "broken.mp4", "conversations": said}], r"validation: .*broken\.mp4"),
    ):
        file.write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=message):
            train(configured(validation=other, max_steps=1, max_skipped=0.9))
    file.unlink()
    with pytest.raises(ValueError, match=r"validation: .*cannot be read"):
        train(configured(validation=other, max_steps=1))


def test_more_steps_than_epochs_make(configured: Any) -> None:
    watch = Watch()
    train(configured(max_steps=5, epochs=1, global_batch=3, batch_per_device=3), callbacks=[watch])
    assert len(watch.losses) == 5
