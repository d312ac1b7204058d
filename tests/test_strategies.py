"""Whatever a caller fixes, what is drawn around it fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.testing import tokenizer_configs


@pytest.mark.parametrize(
    "fixed",
    [
        {},
        {"frame_count": "gap"},
        {"frame_count": "mass", "min_frames": 30},
        {"frame_count": "gap", "max_frames": 2},
        {"min_frames": 25},
        {"max_frames": 1},
        {"max_tokens": 1},
        {"max_tokens": None, "frame_count": "mass"},
    ],
    ids=str,
)
@given(data=st.data())
def test_what_is_fixed_is_taken_as_it_is(data: st.DataObject, fixed: dict[str, Any]) -> None:
    config = data.draw(tokenizer_configs(**fixed))
    assert {name: getattr(config, name) for name in fixed} == fixed
