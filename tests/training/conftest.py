"""Tiny hosts in checkpoint folders, and rows of each kind about real files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import write_video
from PIL import Image
from runs import HOSTS, ROWS, SMALL

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Data:
    """A folder of media, and a JSON file of rows about them."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "rows.json"

    def write(self, rows: list[Any]) -> Path:
        self.file.write_text(json.dumps(rows))
        return self.file


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Rows about two videos, an image (in two turns) and nothing."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "big_buck_bunny.mp4").symlink_to(ROOT / "examples" / "big_buck_bunny.mp4")
    write_video(folder / "blocks.mp4")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    made = Data(folder)
    made.write(ROWS)
    return made


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each host, as published ones lie in a folder."""
    from bvllm_llama_vid.tiny import write_tiny_checkpoint
    from bvllm_qwen2.tiny import tiny_model
    from bvllm_videollama2.tiny import tiny_checkpoint

    folders = {name: tmp_path_factory.mktemp(name) for name in HOSTS}
    model, processor = tiny_model()
    model.save_pretrained(folders["bvllm_qwen2"])
    processor.save_pretrained(folders["bvllm_qwen2"])
    tiny_checkpoint(folders["bvllm_videollama2"])
    write_tiny_checkpoint(folders["bvllm_llama_vid"])
    return folders


@pytest.fixture
def configured(hosts: dict[str, Path], data: Data, tmp_path: Path) -> Any:
    """A function that makes the config of a run of a few steps."""
    from bvllm_adapters.training.config import TrainingConfig

    def made(host: str = "bvllm_qwen2", **fields: Any) -> TrainingConfig:
        given = {
            "stage": "alignment",
            "model": str(hosts[host]),
            "data": [{"file": data.file}],
            "output": tmp_path / "run",
            "learning_rate": 3e-3,
            "schedule": "constant",
            "global_batch": 4,
            "batch_per_device": 4,
            "warmup": 0.0,
            "epochs": 3,
            "max_frames": 6,
            "precision": "fp32",
            "gradient_checkpointing": False,
            "workers": 0,
            "log_every": 1,
            "save_every": 100,
        }
        if fields.get("adapter") is None:
            given["tokenizer"] = SMALL
        if fields.get("stage") == "instruction":
            given["lora"] = {"rank": 4, "alpha": 8}
        return TrainingConfig.from_dict(given | fields)

    return made
