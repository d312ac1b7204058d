from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.seeing.memory import GrowingRows


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 60))
def test_rows_are_those_that_came_and_stay_as_they_were(lengths, expected):
    parts = [torch.randn(length, 3) for length in lengths]
    rows, before = GrowingRows(expected), []
    for part in parts:
        rows.append(part)
        before.append(rows.tensor)
    assert len(rows) == sum(lengths)
    for i, so_far in enumerate(before, start=1):
        assert torch.equal(so_far, torch.cat(parts[:i]))


def test_what_was_cut_off_is_written_over():
    rows = GrowingRows()
    rows.append(torch.zeros(4, 2))
    kept = rows.tensor[:3].clone()
    rows.cut(3)
    rows.append(torch.ones(2, 2))
    assert torch.equal(rows.tensor, torch.cat([kept, torch.ones(2, 2)]))


def test_views_do_not_hold_what_they_are_of():
    rows = GrowingRows(2)
    rows.append(torch.randn(2, 50, 3)[:, 0])
    assert rows.tensor.untyped_storage().nbytes() == rows.tensor.nbytes


def test_inference_mode_may_begin_and_end_between_rows():
    rows = GrowingRows()
    with torch.inference_mode():
        rows.append(torch.ones(1, 2))
    rows.append(torch.ones(1, 2))
    with torch.inference_mode():
        rows.append(torch.ones(1, 2))
    assert rows.tensor.sum() == 6 and not rows.tensor.is_inference()


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows: got none"):
        assert GrowingRows().tensor is None
