"""Checkpoints of every family, read by `bvllm.load` as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, family

import bvllm_adapters as bvllm


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_is_loaded(name: str, tmp_path: Path) -> None:
    """What its config.json says of sizes and kinds of layers is no reason to refuse it."""
    model = family(name).shared_model()
    model.save_pretrained(tmp_path)
    loaded = bvllm.load(tmp_path)
    assert type(loaded) is type(model) and not loaded.training
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in loaded.state_dict().items())
