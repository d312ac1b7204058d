"""How a budget becomes frames and tokens of each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bvllm_adapters.selectors.split import frames_and_tokens

COUNTS = st.one_of(st.integers(1, 30), st.integers(1, 5000))
MAYBE = st.one_of(st.none(), st.integers(1, 300))


@settings(deadline=None)
@given(
    max_tokens=st.one_of(st.none(), COUNTS, st.integers(1, 20_000)),
    num_frames=COUNTS,
    native=COUNTS,
    frames=MAYBE,
    tokens_per_frame=MAYBE,
    least=st.integers(1, 64),
)
def test_a_split_is_legal(
    max_tokens: int | None,
    num_frames: int,
    native: int,
    frames: Any,
    tokens_per_frame: Any,
    least: int,
) -> None:
    chosen, tokens = frames_and_tokens(
        max_tokens,
        num_frames,
        native,
        frames=frames,
        tokens_per_frame=tokens_per_frame,
        least=least,
    )
    assert 1 <= chosen <= num_frames and 1 <= tokens <= native
    assert frames is None or chosen <= frames
    assert tokens_per_frame is None or tokens <= tokens_per_frame
    if max_tokens is None:
        return
    assert (chosen - 1) * tokens < max_tokens  # what the last frame has too much is merged
    if frames is None and (tokens == native or tokens_per_frame is not None):
        assert chosen * tokens >= min(max_tokens, num_frames * tokens)  # no token is left over
    if tokens_per_frame is None:  # nothing is left that could give every frame one token more
        over = max_tokens - chosen * tokens
        rule = max(round(max_tokens**0.5), least)
        assert over < chosen or tokens == native or tokens == rule
    if frames is None and tokens_per_frame is None:  # few frames: as many tokens as there is room
        if num_frames <= max_tokens // tokens:
            assert chosen == num_frames
            assert tokens == min(native, max_tokens // num_frames) or chosen == max_tokens // tokens


@pytest.mark.parametrize(
    ("max_tokens", "split"),
    [
        (256, (12, 20)),
        (1024, (32, 32)),
        (4096, (64, 64)),
        (8192, (90, 91)),
        (16384, (128, 128)),
    ],
)
def test_frames_and_tokens_grow_together(max_tokens: int, split: tuple[int, int]) -> None:
    assert frames_and_tokens(max_tokens, 3600, 196, least=20) == split


def test_few_frames_get_more_tokens_up_to_what_they_have() -> None:
    assert frames_and_tokens(1024, 8, 196, least=20) == (8, 128)
    assert frames_and_tokens(4096, 8, 196, least=20) == (8, 196)
    assert frames_and_tokens(1024, 1, 196) == (1, 196)


def test_both_can_be_set() -> None:
    assert frames_and_tokens(1024, 3600, 196, frames=16) == (16, 64)
    assert frames_and_tokens(1024, 3600, 196, tokens_per_frame=16) == (64, 16)
    assert frames_and_tokens(1024, 3600, 196, frames=16, tokens_per_frame=8) == (16, 8)
    assert frames_and_tokens(1024, 10, 196, tokens_per_frame=16) == (10, 16)
    assert frames_and_tokens(None, 3600, 196) == (3600, 196)
    assert frames_and_tokens(None, 3600, 196, frames=5) == (5, 196)


def test_a_budget_below_the_least_is_one_frame_of_as_many_tokens() -> None:
    assert frames_and_tokens(7, 3600, 196, least=20) == (1, 7)
    assert frames_and_tokens(1, 3600, 196, least=20) == (1, 1)
    assert frames_and_tokens(10, 3600, 196, frames=64) == (10, 1)


@pytest.mark.parametrize(
    "name", ["max_tokens", "num_frames", "native", "frames", "tokens_per_frame", "least"]
)
def test_a_count_below_1_is_an_error(name: str) -> None:
    counts: dict[str, Any] = {"max_tokens": 9, "num_frames": 9, "native": 9, name: 0}
    with pytest.raises(ValueError, match=f"{name}: got 0, wanted an int >= 1"):
        frames_and_tokens(**counts)
