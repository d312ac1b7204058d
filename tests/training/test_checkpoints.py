"""A run that is killed while it writes goes on from the last whole checkpoint, or says why not."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROWS, Watch, talk
from transformers import TrainerState

import bvllm_adapters.training.checkpoints as checkpoints
import bvllm_adapters.training.trainer as trainer
from bvllm_adapters.training.checkpoints import why_not_whole
from bvllm_adapters.training.run import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture
def words(configured: Any, data: Any) -> Any:
    """A run of three steps on words alone, each with its checkpoint."""
    data.write([ROWS[2], {"id": "b", "conversations": talk("and you?", "well, too.")}])
    return configured(
        stage="instruction",
        lora={"rank": 2, "alpha": 4, "dropout": 0.1},
        global_batch=1,
        batch_per_device=1,
        max_steps=3,
        save_every=1,
        keep=2,
    )


class Killed(BaseException):
    """As no handler expects it."""


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def kill_in(point: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill what writes the checkpoint of `step` at a point, with half of a file written."""
    save_adapter, to_json = trainer.save_adapter, TrainerState.save_to_json
    save, rename, rmtree = torch.save, os.rename, shutil.rmtree
    write_whole = checkpoints.write_whole

    def is_now(path: Any) -> bool:
        return f"checkpoint-{step}" in str(path)

    def adapter(model: Any, folder: Any) -> None:
        save_adapter(model, folder)
        if is_now(folder) and point == "adapter":
            cut(Path(folder) / "balanced_tokenizer.safetensors")
            raise Killed

    def state(self: Any, path: str) -> None:
        to_json(self, path)
        if is_now(path) and point == "state":
            cut(Path(path))
            raise Killed

    def tensors(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        save(value, path, *args, **kwargs)
        if is_now(path) and point == Path(path).name:
            cut(Path(path))
            raise Killed

    def listed(path: Path, text: str) -> None:
        if is_now(path) and point == "list":
            raise Killed
        write_whole(path, text)

    def renamed(source: Any, target: Any) -> None:
        whole = Path(source).name == f"checkpoint-{step}"
        if whole and point == "before rename":
            raise Killed
        rename(source, target)
        if whole and point == "after rename":
            raise Killed

    def removed(path: Any, *args: Any, **kwargs: Any) -> None:
        if f"old-checkpoint-{step}" in str(path) and point == "removal" and Path(path).exists():
            cut(next(file for file in Path(path).rglob("*") if file.is_file()))
            raise Killed
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(trainer, "save_adapter", adapter)
    monkeypatch.setattr(TrainerState, "save_to_json", state)
    monkeypatch.setattr(torch, "save", tensors)
    monkeypatch.setattr(checkpoints, "write_whole", listed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)


@pytest.mark.parametrize(
    "point",
    [
        "state",
        "removal",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in (
                "adapter",
                "optimizer.pt",
                "scheduler.pt",
                "rng_state.pth",
                "list",
                "before rename",
                "after rename",
            )
        ),
    ],
)
def test_killed_while_it_writes(
    point: str, words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(replace(words, output=tmp_path / "whole")).state_dict()
    # The first checkpoint is taken away once there are two others.
    step = 1 if point == "removal" else 2
    with monkeypatch.context() as patched:
        kill_in(point, step, patched)
        with pytest.raises(Killed):
            train(words)
    found = sorted(words.output.glob("checkpoint-*"))
    assert found and all(why_not_whole(each) is None for each in found)
    watch = Watch()
    resumed = train(words, resume=True, callbacks=[watch]).state_dict()
    assert len(watch.losses) == {"after rename": 1, "removal": 0}.get(point, 2)
    for name, value in resumed.items():
        assert torch.equal(value, whole[name]), name
    assert [each.name for each in sorted(words.output.glob("checkpoint-*"))][-1] == "checkpoint-3"
    assert not list(words.output.rglob("*.unfinished"))


DAMAGES: list[Any] = [
    lambda at: cut(at / "trainer_state.json"),
    lambda at: (at / "trainer_state.json").unlink(),
    lambda at: (at / "trainer_state.json").write_text("[]"),
    lambda at: (at / "files.json").unlink(),
    lambda at: (at / "files.json").write_text("[" * 9999),
    lambda at: (at / "files.json").write_text("{}"),
    lambda at: (at / "files.json").write_bytes(b"\xff"),
    lambda at: cut(at / "optimizer.pt"),
    lambda at: cut(at / "balanced_tokenizer.safetensors"),
    lambda at: next(at.glob("rng_state*")).unlink(),
    lambda at: shutil.rmtree(at / "lora"),
    lambda at: [file.unlink() for file in at.iterdir() if file.is_file()],
]


def test_a_damaged_checkpoint_is_gone_past(
    words: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {name: value.clone() for name, value in train(words).state_dict().items()}
    last = words.output / "checkpoint-3"
    for i, damage in enumerate(DAMAGES):
        copy = Path(shutil.copytree(last, tmp_path / str(i) / last.name))
        assert why_not_whole(copy) is None
        damage(copy)
        assert why_not_whole(copy), i
    DAMAGES[0](last)
    watch = Watch()
    resumed = train(words, resume=True, callbacks=[watch]).state_dict()
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if f"{last} is not whole: " in line]
    assert len(watch.losses) == 1
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert why_not_whole(last) is None


def test_no_whole_checkpoint(words: Any) -> None:
    train(words)
    for each in words.output.glob("checkpoint-*"):
        (each / "files.json").unlink()
    with pytest.raises(ValueError, match=r"resume: got no checkpoint in .* that is whole"):
        train(words, resume=True)


def test_as_many_checkpoints_stay_as_are_kept(words: Any, tmp_path: Path) -> None:
    for keep, names in ((1, [3]), (2, [2, 3]), (None, [1, 2, 3])):
        config = replace(words, keep=keep, output=tmp_path / str(keep))
        train(config)
        found = sorted(each.name for each in config.output.glob("checkpoint-*"))
        assert found == [f"checkpoint-{n}" for n in names]
        assert not (config.output / "unfinished").exists()


@pytest.mark.parametrize("other", ["answer", "row", "size", "system", "order"])
def test_other_data_are_not_resumed(other: str, configured: Any, data: Any) -> None:
    rows = [ROWS[1], ROWS[2]]
    data.write(rows)
    config = configured(global_batch=1, batch_per_device=1, max_steps=2, save_every=1)
    train(config)
    # What stands beside a conversation may change.
    data.write([{**row, "source": "elsewhere", "id": "x"} for row in rows])
    train(config, resume=True)
    turns = ROWS[2]["conversations"]
    if other == "answer":
        data.write([ROWS[1], {"conversations": [turns[0], {"from": "gpt", "value": "badly"}]}])
    elif other == "row":
        data.write([*rows, ROWS[2]])
    elif other == "system":
        system = {"from": "system", "value": "be short"}
        data.write([ROWS[1], {"conversations": [system, *turns]}])
    elif other == "order":
        data.write(rows[::-1])
    else:
        with (data.folder / "noise.png").open("ab") as file:
            file.write(b"\0")
    with pytest.raises(ValueError, match="resume: got other data than the run began with"):
        train(config, resume=True)


def test_a_run_whose_data_are_not_known_is_not_resumed(words: Any) -> None:
    train(words)
    file = words.output / "training_data.json"
    assert json.loads(file.read_text())["rows"] == 2
    for text in ("[]", "{", "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"resume: .*training_data\.json"):
            train(words, resume=True)
    file.unlink()
    with pytest.raises(ValueError, match=r"resume: .*training_data\.json"):
        train(words, resume=True)


def test_the_config_is_written_whole(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = words.output / "training.yaml"
    words.save(file)
    before = file.read_bytes()

    def killed(*args: Any) -> None:
        raise Killed

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        replace(words, seed=3).save(file)
    assert file.read_bytes() == before
