"""A frozen host teaches its selector where to look: of each clip one group of frames is striped,
and the answers are those that the host itself finds likely once it is shown this group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import processors
import pytest
import torch
from PIL import Image
from test_transformers_learned import Fixed
from transformers import TrainerCallback, set_seed

import bvllm_adapters as bvllm
from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.run import prepared, train

GROUPS = 6  # pairs of frames
QUESTION = "Which letter?"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.all: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.all.append(float(kwargs["logs"]["loss"]))


def clip(rng: np.random.Generator, needle: int, folder: Path) -> Path:
    """A folder of frames, dark ones of any colour but for two that are striped."""
    folder.mkdir()
    for i in range(2 * GROUPS):
        color = rng.integers(0, 120, 3)
        frame = np.clip(rng.normal(color, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
        if i // 2 == needle:
            frame[:, ::8] = frame[:, 1::8] = frame[:, 2::8] = frame[:, 3::8] = 255
        Image.fromarray(frame).save(folder / f"{i:03}.png")
    return folder


def answer(model: Any, path: Path, needle: int) -> str:
    """The letter that this group makes most likely, against what the others make so."""
    letters = torch.tensor(processors.processor("qwen2_5_vl").tokenizer(LETTERS)["input_ids"])
    scores = []
    video = bvllm.open_video(model, path, processor=processors.processor("qwen2_5_vl"), fps=None)
    for group in range(GROUPS):
        model.balanced_tokenizer.frame_selector = Fixed([group])
        found = video.ask(QUESTION, max_new_tokens=1, output_logits=True, do_sample=False)
        scores.append(found.generated.logits[0][0].log_softmax(dim=-1)[letters])
    others = torch.stack([score for i, score in enumerate(scores) if i != needle])
    return LETTERS[int((scores[needle] - others.mean(dim=0)).argmax())]


def chosen(model: Any, path: Path) -> list[int]:
    found = bvllm.ask(
        model, path, QUESTION, processor=processors.processor("qwen2_5_vl"), max_new_tokens=1,
        fps=None,
    )  # fmt: skip
    return [frame.frame for frame in found.trace.frames]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_selector_learns_from_a_frozen_host(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = processors.write("qwen2_5_vl", tmp_path / "base")
    teacher = bvllm.wrap(bvllm.load(base), selector=Fixed([0]), num_frames=1)
    rows, held = [], []
    for i in range(24):
        needle = int(rng.integers(GROUPS))
        path = clip(rng, needle, tmp_path / f"clip{i}")
        if i >= 16:
            held.append((path, needle))
            continue
        said = answer(teacher, path, needle)
        talk = [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": said}]
        rows.append({"id": i, "video": path.name, "conversations": talk})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = TrainingConfig.from_dict(
        {
            "stage": "alignment", "model": str(base), "train": ["frame_selector"],
            "data": [{"file": tmp_path / "rows.json"}], "output": tmp_path / "run",
            "learning_rate": 1e-2, "schedule": "constant", "global_batch": 8,
            "batch_per_device": 8, "warmup": 0.0, "max_steps": 30, "precision": "fp32", "seed": 1,
            "gradient_checkpointing": False, "workers": 0, "log_every": 1, "save_every": 100,
            "tokenizer": {
                "selector": "learned", "num_frames": 1, "qformer_width": 16, "qformer_layers": 1,
                "qformer_heads": 2,
            },
        }
    )  # fmt: skip
    set_seed(config.seed)
    begun: Any = prepared(config)[0].eval()
    losses = Losses()
    model: Any = train(config, callbacks=[losses])
    before, after = (
        sum(needle in chosen(one, path) for path, needle in held) for one in (begun, model)
    )
    assert before <= 1 and after >= len(held) - 1
    # The answer's end, which no frame decides, is learned by nothing here.
    assert sum(losses.all[-8:]) < sum(losses.all[:8]) - 8 * 0.3
