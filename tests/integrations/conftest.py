"""Shared by the tests of the native host: one tiny model, and frames to show it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from bvllm_qwen2 import BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor

    Tiny = tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]


@pytest.fixture(scope="session")
def tiny_qwen2_session() -> Tiny:
    from bvllm_qwen2.tiny import tiny_model

    torch.set_num_threads(1)
    return tiny_model()


@pytest.fixture
def tiny_qwen2(tiny_qwen2_session: Tiny) -> Tiny:
    """A model of one's own to change, and the processor of all."""
    model, processor = tiny_qwen2_session
    return copy.deepcopy(model), processor


@pytest.fixture(scope="session")
def noise() -> dict[str, np.ndarray]:
    """Frames that have nothing in common: two videos and an image."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 256, (*shape, 48, 72, 3), dtype=np.uint8)
        for name, shape in {"long": (11,), "short": (3,), "image": ()}.items()
    }
