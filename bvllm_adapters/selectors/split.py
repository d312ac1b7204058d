"""A budget split into frames and tokens of each.

More frames and more tokens of each both help, and both saturate; so that neither starves, they grow
together: R is about the square root of the budget.
"""

from __future__ import annotations

import math

from bvllm_adapters.checks import check_count


def frames_and_tokens(
    max_tokens: int | None,
    num_frames: int,
    native: int,
    *,
    frames: int | None = None,
    tokens_per_frame: int | None = None,
    least: int = 1,
) -> tuple[int, int]:
    """How many frames to choose, K, and how many tokens each should have, R.

    Without a word from the caller R = round(sqrt(max_tokens)), held between `least` and `native`,
    and K as many frames as that leaves, T at most. What is left of the budget goes to more tokens
    for each where frames are few.

    Args:
        max_tokens: the budget; None: no limit.
        num_frames: T, frames that there are. native: tokens of a frame as it is.
        frames, tokens_per_frame: K and R as the caller wants them; None: by the rule. A K that the
            budget has no token each for, or that there are no frames for, is lowered; and an R
            that the frames asked for leave no room for.
        least: R below which frames say too little: `native` or the budget where those are lower.

    Returns:
        (K, R), both 1 or more, K <= T, R <= native. K R is max_tokens but for fewer than K more,
        or than R less; or no frame has a use for more, or the caller's numbers leave it. What is
        too much, BudgetMerger merges.

    Raises:
        ValueError, TypeError: a count below 1.
    """
    for name, value in {
        "max_tokens": max_tokens,
        "num_frames": num_frames,
        "native": native,
        "frames": frames,
        "tokens_per_frame": tokens_per_frame,
        "least": least,
    }.items():
        if value is not None or name in ("num_frames", "native", "least"):
            check_count(name, value)
    budget = num_frames * native if max_tokens is None else max_tokens
    tokens = tokens_per_frame
    if tokens is None:
        tokens = native if max_tokens is None else max(math.floor(budget**0.5 + 0.5), least)
    tokens = min(tokens, native, budget)
    fitting = budget // tokens
    if tokens == native or tokens_per_frame is not None:
        fitting = -(-budget // tokens)  # the last one is merged to what is left
    chosen = min(fitting if frames is None else frames, num_frames, budget)
    if chosen != fitting:  # each has an equal part, but no more than was asked for
        tokens = min(native if tokens_per_frame is None else tokens, budget // chosen)
    return chosen, tokens


def least_tokens(native: int) -> int:
    """Of a frame whose own tokens are merged, without training: a tenth of them, 20 at least."""
    return min(native, max(20, -(-native // 10)))
