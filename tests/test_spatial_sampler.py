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


QUESTIONS = torch.tensor([[101, 5, 102, 0, 0], [101, 9, 7, 8, 102]])
MASK = QUESTIONS != 0
COUNTS = [3, 2]


def repeated(x):
    return x.repeat_interleave(torch.tensor(COUNTS), dim=0)


@pytest.mark.parametrize("text", [True, False])
def test_a_question_is_read_once_for_all_its_frames(sampler, text):
    """The same tokens and gradients as with a row for each frame, of questions of two lengths."""
    ids, mask = (QUESTIONS, MASK) if text else (QUESTIONS[:, :0], MASK[:, :0])
    found = []
    rows = []
    first = sampler.qformer.layers[0].attention
    first.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    for text_ids, text_mask, how in (
        (repeated(ids), repeated(mask), {}),
        (ids, mask, {"counts": COUNTS}),
    ):
        frames = torch.randn(5, 7, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        sampler.zero_grad()
        tokens = sampler(frames, text_ids, text_mask, **how)
        tokens.square().sum().backward()
        found.append([tokens, frames.grad, *(p.grad for p in sampler.parameters())])
    assert rows == [5, 2]
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert (found[0][0] - found[1][0]).abs().max() <= 1e-6


def test_a_subclass_that_reads_a_question_for_each_frame_goes_on(sampler):
    class Own(type(sampler)):
        def read(self, frames, text_ids, text_mask):
            assert len(frames) == len(text_ids) == len(text_mask)
            return super().read(frames, text_ids, text_mask)

    wanted = sampler(frames := torch.randn(5, 7, 12), QUESTIONS, MASK, counts=COUNTS)
    sampler.__class__ = Own
    assert torch.allclose(sampler(frames, QUESTIONS, MASK, counts=COUNTS), wanted, atol=1e-6)
    assert torch.allclose(sampler(frames, repeated(QUESTIONS), repeated(MASK)), wanted, atol=1e-6)


@pytest.mark.parametrize("counts", [[3], [5, 0], [4, 1, 0]])
def test_wrong_counts_are_named(sampler, counts):
    with pytest.raises(ValueError, match=r"counts: got \[.*\], wanted .* of 1 or more"):
        sampler.qformer(torch.zeros(2, 3, 8), torch.zeros(5, 7, 12), QUESTIONS, MASK, counts=counts)
    with pytest.raises(ValueError, match=r"visual: got shape \(4, 7, 12\), wanted \(5, N, 12\)"):
        sampler(torch.zeros(4, 7, 12), QUESTIONS, MASK, counts=COUNTS)
