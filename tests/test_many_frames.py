"""Hours of video: time and memory grow with the frames, not with their square."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bvllm_adapters import (
    BalancedTokenizer,
    BalancedTokenizerConfig,
    BudgetMerger,
    FrameFeatures,
    Selection,
    TemporalMerger,
    testing,
)
from bvllm_adapters.budget_merger import shares_in_prompt
from bvllm_adapters.trace import Trace

MANY, WIDTH, PATCHES = 20_000, 4, 2


class Made(TorchDispatchMode):
    """Counts the numbers in all tensors that are made, and those of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, Tensor):
                self.total += tensor.numel()
                self.largest = max(self.largest, tensor.numel())
        return out


def video(frames: int) -> FrameFeatures:
    rng = torch.Generator().manual_seed(0)
    return FrameFeatures(
        torch.randn(frames, WIDTH, generator=rng),
        torch.randn(frames, PATCHES, WIDTH, generator=rng),
    )


def tokenizer(stages: dict[str, Any], settings: dict[str, Any]) -> BalancedTokenizer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_frames": 4, "tokens_per_frame": 1, "vision_width": WIDTH, "llm_width": WIDTH,
        "qformer_width": WIDTH, "qformer_layers": 1, "qformer_heads": 1,
    }  # fmt: skip
    return BalancedTokenizer(BalancedTokenizerConfig(**(sizes | settings)), **stages).eval()


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "every frame": ({"frame_selector": None, "spatial_sampler": None}, {"max_tokens": 9}),
    "every frame, sampled": ({"frame_selector": None}, {"max_tokens": 15_000}),
    "no budget": ({"frame_selector": None, "spatial_sampler": None}, {}),
    "as many as hold most": ({}, {"frame_count": "mass", "max_frames": MANY, "frame_mass": 1.0}),
    "the paper's": ({}, {"max_tokens": 3}),
}


@pytest.mark.parametrize(("stages", "settings"), WAYS.values(), ids=WAYS)
def test_twice_the_frames_take_twice_as_much(
    stages: dict[str, Any], settings: dict[str, Any]
) -> None:
    made = tokenizer(stages, settings)
    counts = {}
    for frames in (MANY // 2, MANY):
        given = video(frames)
        with torch.no_grad(), Made() as counts[frames]:
            (tokens,) = made([given], ["what?"])
            trace = Trace.of(tokens, max_tokens=None, seconds={})
        testing.check_time_order(tokens)
        assert trace.frames_decoded == frames
        assert [frame.tokens for frame in trace.frames] == torch.bincount(
            tokens.slot, minlength=len(tokens.selection)
        ).tolist()
    half, whole = counts[MANY // 2], counts[MANY]
    # 16 numbers of each of the question's queries and words, when all frames are read at a time.
    assert whole.largest <= 100 * MANY
    assert whole.total <= 2.5 * half.total
    assert whole.calls <= 2.5 * half.calls


def test_all_frames_are_their_indices() -> None:
    with Made() as made:
        every = TemporalMerger()(Selection.everything(MANY))
        merged = BudgetMerger()(torch.ones(MANY, 2, 3), 30_000, every)
    assert made.largest <= 100 * MANY and len(merged) == 30_000
    assert every.frame.tolist() == list(range(MANY)) and len(every) == MANY == every.num_frames
    assert merged.frame[-1] == MANY - 1


def test_shares_look_at_each_size_a_few_times() -> None:
    class Counted(float):
        compared = 0

        def __gt__(self, other: float) -> bool:
            Counted.compared += 1
            return float(self) > float(other)

    sizes = [[Counted(i % 7) for i in range(MANY)], [Counted(1.0)]]
    shares = shares_in_prompt([[2] * MANY, [2]], sizes, 100)
    assert sum(map(sum, shares)) == 100 and shares[1] == [1]
    assert shares[0][6] == 1  # the first of those that were chosen most
    assert Counted.compared <= 4 * MANY


def test_whole_frames_are_rows_of_an_identity() -> None:
    """Whoever asks for weights gets them, whichever way the frames are held."""
    frame, size = torch.tensor([5, 0, 2, 0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    held = Selection.whole(frame, 6, size)
    written = Selection(torch.eye(6)[frame], size).in_time_order()
    for one, two in ((held, written), (held[torch.tensor([2, 3])], written[torch.tensor([2, 3])])):
        assert torch.equal(one.weights, two.weights) and torch.equal(one.size, two.size)
        assert torch.equal(one.frame, two.frame) and one.num_frames == two.num_frames == 6
        assert one.support is two.support is None and one.is_whole and not two.is_whole
    one, two = TemporalMerger()(held), TemporalMerger()(written)
    assert torch.equal(one.weights, two.weights) and torch.equal(one.size, two.size)
    testing.check_selection(one, choices=10)
