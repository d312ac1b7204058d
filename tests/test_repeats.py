from __future__ import annotations

import numpy as np
import pytest

from bvllm_adapters.seeing.repeats import Repeats, thumbnail


def grey(level: int) -> np.ndarray:
    return np.full((48, 64, 3), level, np.uint8)


def test_every_frame_is_new_without_a_threshold():
    repeats = Repeats(None)
    assert [repeats.is_new(grey(7)) for _ in range(3)] == [True] * 3
    assert repeats.rows == [0, 1, 2]


def test_like_frames_share_the_first_of_them():
    repeats = Repeats(2.0)
    levels = [10, 11, 12, 50, 51, 10]
    assert [repeats.is_new(grey(level)) for level in levels] == [
        True, False, False, True, False, True,
    ]  # fmt: skip
    assert repeats.rows == [0, 0, 0, 1, 1, 2]


def test_slow_change_adds_up():
    """A frame is compared with the last that was new, not with its neighbour."""
    repeats = Repeats(2.0)
    for level in range(100, 110):
        repeats.is_new(grey(level))
    assert repeats.rows == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_a_threshold_of_zero_joins_only_equals():
    repeats = Repeats(0.0)
    other = grey(10)
    other[:32, :32] += 1
    assert [repeats.is_new(frame) for frame in (grey(10), grey(10), other)] == [True, False, True]


def test_a_thumbnail_is_the_mean_of_what_it_covers():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    expected = frame.reshape(32, 2, 32, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail(frame), expected, atol=1)  # PIL rounds each pass
    assert thumbnail(frame).shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (31, 500, 3), (720, 1280, 3)])
def test_any_size_of_frame(shape):
    assert Repeats(1.0).is_new(np.zeros(shape, np.uint8))
