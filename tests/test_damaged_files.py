"""Files of a model and its adapter, damaged in one place each: its own answer, or one clear error.

`pytest -m slow tests/test_damaged_files.py` tries several hundred.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from damage import GONE, VALUES, WHOLE, is_another_of_its_kind, mutated, places, value_at
from tiny_hosts import TINY_HOSTS, beside_processor, wrap_small
from torch import Tensor

import bvllm_adapters as bvllm
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.training.stages import decoder_linears
from bvllm_adapters.weights.json_file import CheckpointError
from bvllm_adapters.weights.lora_layers import add_lora, lora_layers

FRAMES = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
QUESTION = "What is in the picture?"


class Saved(NamedTuple):
    """A wrapped model's folder, and what is answered by it."""

    folder: Path
    tokens: Tensor
    text: str


def answer(model: Any) -> tuple[Tensor, str]:
    video = bvllm.open_video(model, FRAMES)
    (tokens,) = model.balanced_tokenizer([video.features], [QUESTION])
    return tokens.tokens.double(), video.ask(QUESTION, max_new_tokens=6).text


@pytest.fixture(scope="module", params=TINY_HOSTS, ids=lambda host: host.__name__)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """With its processor and an adapter that has a LoRA."""
    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("saved")
    model = beside_processor(request.param, plain)
    wrap_small(model)
    add_lora(model, decoder_linears(model, ("q_proj",)), rank=2, alpha=4)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.2)
    model.save_pretrained(folder)
    return Saved(folder, *answer(bvllm.load(folder)))


def damages(folder: Path) -> list[tuple[Path, Any, Any]]:
    """(file, place in it or what happened to all of it, what stands there now)."""
    found: list[tuple[Path, Any, Any]] = []
    for file in sorted(folder.rglob("*.json")):
        if file.name == "tokenizer.json":
            continue
        name = file.relative_to(folder)
        found += [(name, how, None) for how in WHOLE]
        values = json.loads(file.read_text())
        found += [(name, place, value) for place in places(values) for value in VALUES]
    return found


def tried(saved: Saved, work: Path, count: int, seed: int) -> Counter[str]:
    """So many damages, each to a fresh copy.

    Raises:
        AssertionError: naming the damage, for another's traceback, or an answer that nobody meant.
    """
    outcomes: Counter[str] = Counter()
    for file, place, value in random.Random(seed).sample(damages(saved.folder), count):
        folder = work / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved.folder, folder)
        text = (folder / file).read_text()
        whole = isinstance(place, str)
        (folder / file).write_bytes(WHOLE[place](text) if whole else mutated(text, place, value))
        what = f"{file} {place} {value!r}"
        try:
            tokens, said = answer(bvllm.load(folder))
        except (CheckpointError, HostError) as error:
            assert str(folder) in str(error), f"{what}: {error}"
            outcomes["refused"] += 1
            continue
        except Exception as error:
            # Not of the file alone: an adapter for another host, or beside other weights.
            ours = type(error) is ValueError and str(error).startswith("adapter: ")
            assert ours, f"{what}: {error!r}"
            outcomes["refused"] += 1
            continue
        same = said == saved.text and torch.equal(tokens, saved.tokens)
        allowed = not whole and is_another_of_its_kind(value_at(text, place), value)
        assert same or allowed, f"{what}: another answer"
        outcomes["the same" if same else "another value"] += 1
    return outcomes


def test_damaged_files(saved: Saved, tmp_path: Path) -> None:
    outcomes = tried(saved, tmp_path, count=15, seed=0)
    assert outcomes["refused"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_damaged_files(saved: Saved, tmp_path: Path, seed: int) -> None:
    outcomes = tried(saved, tmp_path, count=100, seed=seed)
    print(dict(outcomes))
    assert outcomes["refused"] >= 40


def test_every_way_to_damage_a_file_is_tried(saved: Saved) -> None:
    found = damages(saved.folder)
    assert len(found) > 1000
    assert {value for _, _, value in found if isinstance(value, str)} == {GONE, "text"}
