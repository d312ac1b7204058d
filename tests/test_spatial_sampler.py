from __future__ import annotations

import pytest
import torch

from bvllm_adapters import BalancedTokenizerConfig
from bvllm_adapters.build import build_sampler

SIZES = {
    "tokens_per_frame": 3, "vision_width": 12, "qformer_width": 8, "qformer_layers": 2,
    "qformer_heads": 2,
}  # fmt: skip


@pytest.fixture
def sampler():
    torch.manual_seed(0)
    made = build_sampler(BalancedTokenizerConfig(**SIZES))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return made.eval()


def test_tokens_of_each_frame(sampler):
    tokens = sampler(torch.randn(5, 7, 12), torch.randint(1, 99, (5, 4)))
    assert tokens.shape == (5, 3, 8)


def test_the_question_matters_frame_by_frame(sampler):
    frame = torch.randn(1, 7, 12).expand(2, -1, -1)
    same, other = torch.tensor([[101, 5, 102]] * 2), torch.tensor([[101, 5, 102], [101, 9, 102]])
    assert torch.allclose(*sampler(frame, same))
    assert not torch.allclose(*sampler(frame, other), atol=1e-2)


def test_frames_are_normed_before_they_are_read(sampler):
    frames, text = torch.randn(2, 7, 12), torch.ones(2, 3).long()
    tokens = sampler(frames, text)
    assert torch.allclose(sampler(frames * 50 + 3, text), tokens, atol=1e-4)
    assert torch.equal(sampler(sampler.prepare(frames), text, prepared=True), tokens)
