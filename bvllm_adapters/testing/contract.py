"""The contract as executable rules. Each takes what a tokenizer made and raises AssertionError."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.features import FrameFeatures, Selection, VisualTokens


def check_budget(
    tokens: Sequence[VisualTokens | Tensor | int], max_tokens: int, available: int | None = None
) -> None:
    """All visual inputs of one prompt together keep the budget, and waste none of it.

    Args:
        tokens: of each input: VisualTokens, an (N, D) tensor, or just N.
        available: tokens there were before merging, where that is known: then exactly
            min(max_tokens, available) must come out.
    """
    counts = [count if isinstance(count, int) else len(count) for count in tokens]
    total = sum(counts)
    assert total <= max_tokens, f"{total} visual tokens ({counts}) over a budget of {max_tokens}"
    if available is not None:
        wanted = min(max_tokens, available)
        assert total == wanted, f"{total} visual tokens out of {available}, wanted {wanted}"


def check_time_order(tokens: VisualTokens) -> None:
    """Frames never go back; within a row of the selection, places go forward."""
    frame = tokens.frame
    assert bool((frame.diff() >= 0).all()), f"frames out of order: {frame.tolist()}"
    last = tokens.selection.num_frames
    assert bool(((frame >= 0) & (frame < last)).all()), f"frames beyond {last}: {frame.tolist()}"
    if tokens.place is not None:
        ahead = (tokens.place.diff() > 0) | (tokens.slot.diff() > 0)
        forward = bool(ahead.all()) and bool((tokens.place >= 0).all())
        assert forward, f"places out of order: {tokens.place.tolist()}"


def check_selection(selection: Selection, choices: int | None = None) -> None:
    """Rows are shares of frames in float32 that sum to 1; no choice is lost.

    Args:
        choices: of the selector, where known: the sizes must sum to it.
    """
    weights, size = selection.weights, selection.size
    assert weights.dtype == size.dtype == torch.float32, f"{weights.dtype} and {size.dtype}"
    assert bool((weights >= 0).all()), "negative weights"
    row_sums = weights.sum(dim=1)
    assert torch.allclose(row_sums, torch.ones_like(row_sums), atol=1e-5), f"rows sum to {row_sums}"
    assert bool((selection.frame.diff() >= 0).all()), f"out of order: {selection.frame.tolist()}"
    if choices is not None:
        total = float(size.sum())
        assert abs(total - choices) < 1e-3, f"sizes sum to {total}, wanted {choices} choices"


def check_mass(before: Tensor, after: VisualTokens, tolerance: float = 1e-4) -> None:
    """Merging moves nothing: sum(size * token) and sum(size) of each frame that stays are kept.

    Args:
        before: (M, R, H) tokens of each frame. after: what BudgetMerger made of them.
    """
    for row in after.slot.unique().tolist():
        of = after.slot == row
        count = float(after.size[of].sum())
        assert count == before.shape[1], f"frame {row}: sizes sum to {count}, had {before.shape[1]}"
        mass = (after.size[of, None] * after.tokens[of].float()).sum(dim=0)
        error = float((mass - before[row].float().sum(dim=0)).detach().abs().max())
        assert error <= tolerance * before.shape[1], f"frame {row}: mass is off by {error}"


def check_deterministic(make: Callable[[], Sequence[VisualTokens]]) -> None:
    """The same call gives the same bits."""
    for first, second in zip(make(), make(), strict=True):
        assert torch.equal(first.tokens, second.tokens), "tokens differ between two calls"
        assert torch.equal(first.frame, second.frame), "frames differ between two calls"
        assert torch.equal(first.size, second.size), "sizes differ between two calls"


def check_no_budget_is_a_no_op(
    tokenizer: BalancedTokenizer, video: FrameFeatures, question: str
) -> None:
    """A budget that is not reached changes no bit."""
    free = tokenizer([video], [question], max_tokens=10**9)[0]
    exact = tokenizer([video], [question], max_tokens=len(free))[0]
    assert torch.equal(free.tokens, exact.tokens), "a budget that is just met changed the tokens"
    assert bool((free.size == 1).all()), "tokens were merged without need"


def check_independent_of_batch(
    tokenizer: BalancedTokenizer,
    videos: Sequence[FrameFeatures],
    questions: Sequence[str],
    tolerance: float = 1e-5,
) -> None:
    """A video's tokens are the same alone and among others."""
    together = tokenizer(videos, questions)
    for i, (video, question) in enumerate(zip(videos, questions, strict=True)):
        alone = tokenizer([video], [question])[0]
        assert torch.equal(alone.frame, together[i].frame), f"input {i}: other frames in a batch"
        error = float((alone.tokens - together[i].tokens).detach().abs().max())
        assert error <= tolerance, f"input {i}: tokens differ by {error} in a batch"
