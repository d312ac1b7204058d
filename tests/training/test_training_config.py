"""The config: what is written comes back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.lora_settings import LoraSettings
from bvllm_adapters.training.rows import Source

SHIPPED = Path(__file__).parents[2] / "examples" / "training"
LEAST: dict[str, Any] = {
    "stage": "alignment",
    "model": "host",
    "data": [{"file": "a/rows.json"}, {"file": "b.json", "media": "videos"}],
    "output": "runs/one",
    "learning_rate": 1e-3,
    "schedule": "linear",
    "global_batch": 256,
}


def made(**fields: Any) -> TrainingConfig:
    return TrainingConfig.from_dict(LEAST | fields)


def test_defaults() -> None:
    config = made()
    assert config.train == ("frame_selector", "projection")
    assert config.lora is None
    assert config.data == (
        Source(Path("a/rows.json"), Path("a")),
        Source(Path("b.json"), Path("videos")),
    )
    tuning = made(stage="instruction")
    assert tuning.train == ("frame_selector", "spatial_sampler", "projection")
    assert tuning.lora == LoraSettings(rank=128, alpha=256)


@pytest.mark.parametrize(
    "fields",
    [
        {"train": ["spatial_sampler"], "tokenizer": {"max_tokens": 9}, "deepspeed": "zero2.json"},
        {"stage": "instruction", "lora": {"rank": 4, "targets": ["q_proj"]}, "adapter": "aligned"},
        {"validation": [{"file": "v.jsonl", "media": "m"}], "validate_every": 9},
        {"outside_media": True},
    ],
)
def test_saved_and_loaded(fields: dict[str, Any], tmp_path: Path) -> None:
    config = made(**fields)
    config.save(tmp_path / "folder" / "config.yaml")
    assert TrainingConfig.load(tmp_path / "folder" / "config.yaml") == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "pretrain"}, "stage: got 'pretrain', wanted one of"),
        ({"schedule": "step"}, "schedule: got 'step', wanted one of"),
        ({"precision": "fp16"}, "precision: got 'fp16', wanted one of"),
        ({"model": ""}, "model: got '', wanted a folder or hub id"),
        ({"adapter": 3}, "adapter: got 3, wanted a folder"),
        ({"output": None}, "output: got None, wanted a path"),
        ({"deepspeed": True}, "deepspeed: got True, wanted a path"),
        ({"global_batch": 0}, "global_batch: got 0, wanted an int >= 1"),
        ({"batch_per_device": 1.5}, "batch_per_device: got 1.5"),
        ({"workers": -1}, "workers: got -1, wanted an int >= 0"),
        ({"max_frames": 0}, "max_frames: got 0"),
        ({"keep": "2"}, "keep: got '2'"),
        ({"learning_rate": 0}, "learning_rate: got 0, wanted a number > 0"),
        ({"learning_rate": "1e-3"}, "learning_rate: got '1e-3', .*write 1.0e-3"),
        ({"fps": True}, "fps: got True, wanted a number > 0"),
        ({"epochs": float("nan")}, "epochs: got nan, wanted a number > 0"),
        ({"weight_decay": -1}, "weight_decay: got -1, wanted a number >= 0"),
        ({"warmup": 1}, "warmup: got 1, wanted a number >= 0 and < 1"),
        ({"max_skipped": 1.0}, "max_skipped: got 1.0"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing: got 1, wanted True or False"),
        ({"report_to": "tensorboard"}, "report_to: got 'tensorboard', wanted a list of names"),
        ({"train": ["vision_tower"]}, r"train: got \['vision_tower'\], wanted a list of some of"),
        ({"data": []}, r"data: got \[\], wanted a list of files"),
        ({"data": ["a.json"]}, r"data\[0\]: got 'a.json', wanted file:"),
        ({"data": [{"file": "a", "root": "b"}]}, r"data\[0\]: got .*root"),
        ({"data": [{"file": 1}]}, r"data\[0\]\.file: got 1, wanted a path"),
        ({"tokenizer": 3}, "tokenizer: got 3, wanted settings by name"),
        ({"tokenizer": {"theta": 3}}, r"tokenizer: got \['theta'\], wanted some of"),
        (
            {"tokenizer": {"num_frames": 3}, "adapter": "a"},
            r"\['num_frames'\], wanted .*max",
        ),
        ({"instructblip": "b", "adapter": "a"}, "instructblip: got it beside adapter"),
        ({"scout": "b", "adapter": "a"}, "scout: got it beside adapter"),
        ({"scout": "b"}, "scout: got 'b' with tokenizer.scout.architecture=None, wanted weights"),
        (
            {"tokenizer": {"scout": {"architecture": "resnet18", "image_size": 9, "width": 512}}},
            "scout: got None with tokenizer.scout.architecture='resnet18'",
        ),
        ({"lora": {"rank": 4}}, "lora: got .* in alignment, wanted none"),
        ({"stage": "instruction", "train": ["projection"]}, "train: got .* in instruction"),
        ({"stage": "instruction", "lora": 4}, "lora: got 4, wanted settings by name"),
        ({"stage": "instruction", "lora": {"r": 4}}, r"unknown names \['r'\]"),
        ({"stage": "instruction", "lora": {"rank": 0}}, "lora.rank: got 0"),
        ({"stage": "instruction", "lora": {"rank": 10**9}}, "lora.rank: got 1000000000, wanted"),
        ({"stage": "instruction", "lora": {"alpha": 0}}, "lora.alpha: got 0"),
        ({"stage": "instruction", "lora": {"dropout": 1}}, "lora.dropout: got 1"),
        ({"stage": "instruction", "lora": {"targets": "q"}}, "lora.targets: got 'q'"),
        ({"outside_media": 1}, "outside_media: got 1, wanted True or False"),
        ({"validation": ["a"]}, r"validation\[0\]: got 'a', wanted file:"),
        ({"validation": "a"}, "validation: got 'a', wanted a list of files"),
        ({"validate_every": 0}, "validate_every: got 0"),
        ({"seed": 2**31}, "seed: got 2,147,483,648, wanted less than"),
        ({"max_steps": 10**30}, "max_steps: got 1,000,.*, wanted less than"),
        ({"epochs": 1e7}, "epochs: got .*, wanted a number > 0 and <= 1e\\+06"),
        ({"learning_rate": 10**400}, "learning_rate: got an int beyond 1e300, wanted a number > 0"),
        ({"output": "a\0b"}, "output: got .*wanted a path"),
        ({"tokenizer": {"a": 1, 3: 4}}, r"tokenizer: got \['3', 'a'\], wanted some of"),
        ({"lr": 1}, r"unknown names \['lr'\], wanted some of"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        made(**fields)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="got no model, schedule, wanted"):
        TrainingConfig.from_dict({k: v for k, v in LEAST.items() if k not in ("model", "schedule")})


WRONG_TEXTS: list[tuple[bytes, str]] = [
    (b"a: [", "line 1"),
    (b"stage: alignment\n\tmodel: x", "line 2"),
    (b"\xff\xfe\x00", "cannot be read"),
    (b"a: \x00", "cannot be read"),
    (b"[" * 5000, "nested too deeply"),
    (b"a: 1\na: 2", "got 'a' twice.*line 2"),
    (b"{a: 1, 'a': 2}", "got 'a' twice"),
    (b"tokenizer: {max_tokens: 1, max_tokens: 2}", "got 'max_tokens' twice"),
    (b"? [a]\n: 1", "unhashable key"),
    (b"? {a: 1}\n: 1", "unhashable key"),
    (b"a: &x [1]\nb: *x", "got an alias.*line 2"),
    (b"a: &x [*x]", "got an alias"),
    (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    (b"!!python/name:os.system", "could not determine a constructor"),
    (b"a: !!timestamp x", "cannot be read"),
    (b"a: !!bool x", "cannot be read"),
    (b"a: !!int x", "cannot be read"),
    (b"a: 2020-99-99", "cannot be read"),
    (b"a: " + b"9" * 5000, "cannot be read"),
    (b"--- {}\n--- {}", "expected a single document"),
    (b"", "got NoneType"),
    (b"3", "got int"),
    (b"- a", "got list"),
    (b"3: 4", "unknown names"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_TEXTS)
def test_damaged_files_are_named(text: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=rf"(?s)config: .*config\.yaml: .*{message}"):
        TrainingConfig.load(file)


def test_a_byte_order_mark_and_wrong_values(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    made().save(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert TrainingConfig.load(file) == made()
    file.write_text(file.read_text(encoding="utf-8-sig").replace("seed: 0", "seed: 1.5"))
    with pytest.raises(ValueError, match=r"config: .*config\.yaml: seed: got 1\.5"):
        TrainingConfig.load(file)


@pytest.mark.parametrize("text", ["- a", "a: [", None])
def test_files_that_are_none(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=r"config: .*config\.yaml"):
        TrainingConfig.load(file)


def test_the_global_batch_is_kept() -> None:
    config = made(global_batch=256, batch_per_device=4)
    assert [config.accumulation(devices) for devices in (1, 2, 16, 64)] == [64, 32, 4, 1]
    with pytest.raises(ValueError, match="global_batch: got 256, wanted a multiple of 12: 3 dev"):
        config.accumulation(3)


def test_steps() -> None:
    assert made(global_batch=10).steps(105) == 10
    assert made(global_batch=10, epochs=2).steps(105) == 21
    assert made(global_batch=10, max_steps=3).steps(105) == 3
    assert made(global_batch=10, max_steps=300).steps(105) == 300  # rows go round again
    assert made(global_batch=10, max_steps=3).steps(1) == 3
    with pytest.raises(ValueError, match="data: got 0 rows"):
        made(max_steps=3).steps(0)
    with pytest.raises(ValueError, match=r"data: got 9 rows for 1 epochs, wanted .*10"):
        made(global_batch=10).steps(9)


@pytest.mark.parametrize("host", ["bvllm_qwen2", "videollama2", "llama_vid"])
def test_shipped_configs_are_the_papers(host: str) -> None:
    first = TrainingConfig.load(SHIPPED / f"{host}_alignment.yaml")
    assert (first.stage, first.learning_rate, first.schedule) == ("alignment", 1e-3, "linear")
    assert (first.global_batch, first.warmup, first.fps) == (256, 0.03, 1.0)
    assert first.train == ("frame_selector", "projection")
    second = TrainingConfig.load(SHIPPED / f"{host}_instruction.yaml")
    assert (second.stage, second.learning_rate, second.schedule) == ("instruction", 1e-4, "cosine")
    assert (second.global_batch, second.fps) == (128, 1.0)
    assert second.lora == LoraSettings(rank=128, alpha=256)
    # The second goes on where the first ends.
    assert second.adapter == str(first.output)
    assert second.model == first.model
    for config in (first, second):
        assert config.deepspeed == Path("examples/training/zero2.json")
        assert [config.accumulation(devices) for devices in (1, 2, 4, 8, 16)]
    settings = yaml.safe_load((SHIPPED / "zero2.json").read_text())
    assert settings["zero_optimization"]["stage"] == 2
