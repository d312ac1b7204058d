"""A count that is known before, a mask after, equal whatever the tokens are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bvllm_adapters.engines.keep_mask import keep_mask, retained_count
from bvllm_adapters.features import Selection
from bvllm_adapters.selectors.blind import RandomSelector, UniformSelector

SIZES = (st.integers(1, 40), st.integers(1, 60), st.integers(1, 1000), st.integers(0, 10**6))


def some(frames: int, each: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    return torch.randn(frames, each, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(*SIZES, st.sampled_from([None, UniformSelector(), RandomSelector().eval()]))
def test_as_many_are_kept_as_was_said(
    frames: int, each: int, budget: int, seed: int, selector: Any
) -> None:
    tokens = some(frames, each, seed)
    mask = keep_mask(tokens, budget, selector=selector)
    assert mask.shape == (frames, each) and mask.dtype == torch.bool
    assert int(mask.sum()) == retained_count(frames, each, budget) <= budget
    assert torch.equal(mask, keep_mask(tokens, budget, selector=selector))


@given(*SIZES, st.integers(1, 50))
def test_selectors_that_repeat_themselves_or_stop_early(
    frames: int, each: int, budget: int, seed: int, most: int
) -> None:
    draw = torch.Generator().manual_seed(seed)

    class Careless(nn.Module):
        def forward(self, cls: Tensor, question: str, *, num_frames: int, **_: Any) -> Selection:
            chosen = torch.randint(len(cls), (min(num_frames, most),), generator=draw)
            return Selection.whole(chosen, len(cls))

    mask = keep_mask(some(frames, each), budget, selector=Careless())
    assert int(mask.sum()) == retained_count(frames, each, budget)


@given(*SIZES[:3])
def test_tokens_all_alike_are_counted_too(frames: int, each: int, budget: int) -> None:
    for tokens in (torch.zeros(frames, each, 4), torch.ones(frames, each, 4, dtype=torch.bfloat16)):
        assert int(keep_mask(tokens, budget).sum()) == retained_count(frames, each, budget)


def test_the_budget_goes_to_frames_that_differ_and_tokens_that_differ() -> None:
    """Of 30 frames two are unlike the rest; in those each pair of neighbours is one token twice."""
    tokens = torch.zeros(30, 8, 8)
    tokens[..., 0] = 9.0
    for frame in (7, 21):
        tokens[frame] = some(1, 4, frame).repeat_interleave(2, dim=1)[0]
        tokens[frame, :, frame % 3 + 1] += 9.0
    mask = keep_mask(tokens, 24)
    assert mask[7].sum() >= 4 and mask[21].sum() >= 4
    for frame in (7, 21):
        assert keep_mask(tokens[[frame]], 4).tolist() == [[True, False] * 4]


def test_frames_are_a_selectors_and_mean_what_it_says() -> None:
    tokens = some(40, 10)
    mask = keep_mask(tokens, 50, selector=UniformSelector())
    frames = mask.any(dim=1).nonzero().squeeze(1)
    assert int(frames.diff().max() - frames.diff().min()) <= 1
    late = torch.cat([torch.arange(20.0), 1000 + torch.arange(20.0)])
    assert not torch.equal(keep_mask(tokens, 50, seconds=late), keep_mask(tokens, 50))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((some(4, 4)[0], 5), r"tokens: got shape \(4, 8\), wanted \(T, P, H\)"),
        ((some(4, 4).int(), 5), "tokens: got dtype torch.int32"),
        ((some(4, 4) * float("nan"), 5), "tokens: got NaN or inf"),
        ((some(4, 4), 0), "max_tokens: got 0, wanted an int >= 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        keep_mask(*arguments)
    with pytest.raises(ValueError, match="num_frames: got 0"):
        retained_count(0, 4, 4)
    with pytest.raises(TypeError, match=r"tokens_per_frame: got 1\.5"):
        retained_count(4, 1.5, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds: got 3 times, wanted 4"):
        keep_mask(some(4, 4), 5, seconds=torch.arange(3.0))
