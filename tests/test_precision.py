"""Contract line 11: what is chosen and merged does not depend on autocast or the default dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bvllm_adapters import (
    BalancedTokenizer,
    BalancedTokenizerConfig,
    BudgetMerger,
    FrameFeatures,
    Selection,
    TemporalMerger,
    VisualTokens,
)
from bvllm_adapters.budget_merger import cosine, merge_round, merge_rounds, merge_to
from bvllm_adapters.features import mix
from bvllm_adapters.frame_count import FrameCount, count_by_gap, count_by_mass, frame_relevance
from bvllm_adapters.frame_selector import sinusoidal
from bvllm_adapters.temporal_merger import leader_clusters

WIDTH = 16


def autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@contextmanager
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND: dict[str, Callable[[], Any]] = {"autocast": autocast, "float64": float64_by_default}
around = pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Selection):
        return [value.weights, value.size, value.frame]
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in tensors_of(one)]
    return [torch.tensor(value)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float32)


def soft(choices: int, frames: int) -> Tensor:
    return torch.softmax(3 * noise(choices, frames), dim=1)


ONES, PLACES = torch.ones(6, 33), torch.arange(33).expand(6, -1)
# Whatever scores, chooses, mixes and merges.
STEPS: dict[str, Callable[[], Any]] = {
    "cosine": lambda: cosine(noise(6, 9, 32), noise(6, 8, 32, seed=1)),
    "a round": lambda: merge_round(noise(6, 33, 32), ONES, PLACES, 16),
    "rounds": lambda: merge_rounds(noise(6, 33, 32), 5),
    "merge to": lambda: merge_to(noise(6, 33, 32), 5),
    "budget": lambda: BudgetMerger()(noise(6, 33, 32), 40).tokens,
    "sizes": lambda: BudgetMerger()(noise(6, 33, 32), 40).size,
    "no budget": lambda: BudgetMerger()(noise(6, 33, 32), None).size,
    "levels": lambda: BudgetMerger(similarity_width=8)(noise(6, 33, 32), 40).tokens,
    "bfloat16 tokens": lambda: BudgetMerger()(noise(6, 33, 32).bfloat16(), 40).tokens,
    "time order": lambda: Selection.of(soft(64, 700)),
    "everything": lambda: Selection.everything(5),
    "an image": lambda: Selection.single_frame(32),
    "clusters": lambda: leader_clusters(soft(40, 30), 0.75),
    "temporal": lambda: TemporalMerger(0.6)(Selection(soft(40, 30), ONES.flatten()[:40])),
    "whole frames": lambda: TemporalMerger()(Selection.whole(torch.tensor([4, 1, 4]), 9)),
    "mix": lambda: mix(Selection.of(soft(8, 30)), noise(30, 4, 16), nn.Identity()),
    "gather": lambda: mix(Selection.everything(30), noise(30, 4, 16), nn.Identity()),
    "relevance": lambda: frame_relevance(noise(8, 300)),
    "by mass": lambda: count_by_mass(frame_relevance(noise(8, 300)), 0.9),
    "by gap": lambda: count_by_gap(frame_relevance(noise(8, 300))),
    "count": lambda: FrameCount(by="mass", least=1, most=90).select(noise(8, 300)),
    "times": lambda: sinusoidal(torch.arange(300, dtype=torch.float32), WIDTH),
}


@around
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_gives_the_same_bits(step: Callable[[], Any], around: Callable[[], Any]) -> None:
    plain = tensors_of(step())
    with around():
        other = tensors_of(step())
    for one, two in zip(plain, other, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


SELECTORS: dict[str, dict[str, Any]] = {
    "hard": {},
    "soft": {"evaluation": "soft"},
    "few": {"evaluation": "soft", "selection_support": 3},
    "times": {"time_encoding": True},
    "mass": {"frame_count": "mass", "max_frames": 20},
    "gap": {"frame_count": "gap", "max_frames": 20},
}
small = {"vision_width": WIDTH, "num_frames": 12, "max_tokens": 30, "tokens_per_frame": 7}


def example(
    settings: dict[str, Any], training: bool
) -> tuple[BalancedTokenizer, Callable[[], list[VisualTokens]]]:
    """A tokenizer with loud weights, and what calls it."""
    torch.manual_seed(0)
    config = BalancedTokenizerConfig(
        **(small | settings), llm_width=8, qformer_width=16, qformer_layers=2, qformer_heads=2
    )
    tokenizer = BalancedTokenizer(config).train(training)
    for weights in tokenizer.parameters():
        if weights.dim() > 1:
            nn.init.normal_(weights, std=weights.shape[-1] ** -0.5)
    video = FrameFeatures(noise(300, WIDTH), noise(300, 5, WIDTH, seed=1))

    def call() -> list[VisualTokens]:
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            return tokenizer([video], ["what is it?"], generator=rng)

    return tokenizer, call


@around
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("settings", SELECTORS.values(), ids=SELECTORS)
def test_the_same_frames_are_chosen(
    settings: dict[str, Any], training: bool, around: Callable[[], Any]
) -> None:
    _, call = example(settings, training)
    (plain,) = call()
    with around():
        (other,) = call()
    for one, two in zip(
        tensors_of([plain.selection, plain.slot]),
        tensors_of([other.selection, other.slot]),
        strict=True,
    ):
        assert one.dtype == two.dtype and torch.equal(one, two)
    if around is float64_by_default:
        assert torch.equal(plain.tokens, other.tokens) and torch.equal(plain.size, other.size)


@pytest.mark.parametrize("max_tokens", [1, 5, 30])
def test_a_float64_model_by_default(max_tokens: int) -> None:
    """Made, asked and trained where tensors are float64 unless told otherwise."""
    with float64_by_default():
        tokenizer, call = example({}, training=True)
        assert tokenizer.dtype == torch.float64
        video = FrameFeatures(noise(40, WIDTH).double(), noise(40, 5, WIDTH).double())
        (tokens,) = tokenizer([video], ["what?"], max_tokens=max_tokens)
        tokens.tokens.sum().backward()
        assert tokens.tokens.dtype == torch.float64 and tokens.size.dtype == torch.float32
        assert len(tokens) == max_tokens and len(call()[0]) == 30


def test_positions_of_long_videos_are_told_apart() -> None:
    """bfloat16 has 8 bits, and does not know frame 257 from frame 256."""
    weights = torch.zeros(2, 600)
    weights[0, [300, 599]] = torch.tensor([0.6, 0.4])
    weights[1, [300, 598]] = torch.tensor([0.6, 0.4])
    with autocast():
        ordered = Selection.of(weights)
    assert torch.equal(ordered.weights, weights[[1, 0]])


@pytest.mark.parametrize(
    ("step", "given"),
    [
        (lambda x: merge_to(x, 5), noise(6, 33, 32)),
        (lambda x: merge_rounds(x, 5), noise(6, 33, 32)),
        (lambda x: cosine(x, x), noise(6, 9, 32)),
    ],
)
def test_inside_of_one_graph(step: Callable[[Tensor], Any], given: Tensor) -> None:
    """Where autocast is left, a graph goes on."""
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    with autocast():
        for one, two in zip(tensors_of(compiled(given)), tensors_of(step(given)), strict=True):
            assert torch.equal(one, two)


def test_shapes_alone_are_merged_on_the_meta_device() -> None:
    tokens, size, place = merge_to(torch.empty(6, 33, 32, device="meta"), 5)
    assert tokens.shape == (6, 5, 32) and size.shape == place.shape == (6, 5)


def test_merging_under_autocast_has_its_gradient() -> None:
    gradients = []
    for around in (nullcontext, autocast):
        tokens = noise(3, 33, 32).requires_grad_()
        with around():
            merged = BudgetMerger()(tokens, 9).tokens
        merged.square().sum().backward()
        gradients.append(tokens.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]
