"""Merging against recorded rounds of the authors' code, and the sharing out of a budget."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bvllm_adapters import BudgetMerger, Selection, testing
from bvllm_adapters.budget_merger import (
    add_by_product,
    add_in_turn,
    allot,
    cosine,
    largest,
    merge_round,
    merge_rounds,
    merge_to,
)
from bvllm_adapters.features import first_max

RECORDED = Path(__file__).parent / "data" / "bvllm_merge"
INDEX = json.loads((RECORDED / "index.json").read_text())
PRESENT = sorted(file.stem for file in RECORDED.glob("*.safetensors"))


def merge_as_recorded(x, target):
    """In the order of the last round."""
    if target >= x.shape[1]:
        return merge_to(x, target)[:2]
    return merge_rounds(x, target)[:2]


@pytest.mark.parametrize("name", [n for n in PRESENT if n.startswith("multi")])
def test_recorded_schedule_with_sizes(name):
    recorded = load_file(RECORDED / f"{name}.safetensors")
    target = INDEX[name]["target"]
    tokens, size = merge_as_recorded(recorded["x"], target)
    assert torch.allclose(tokens, recorded["out_weighted"], atol=1e-6)
    assert torch.equal(size, recorded["size_weighted"].squeeze(-1))

    ordered, ordered_size, _ = merge_to(recorded["x"], target)
    for row in range(len(tokens)):  # the same tokens, in the order of their earliest member
        places = torch.cdist(ordered[row], tokens[row]).argmin(dim=1)
        assert sorted(places.tolist()) == list(range(tokens.shape[1]))
        assert torch.equal(ordered[row], tokens[row, places])
        assert torch.equal(ordered_size[row], size[row, places])


@pytest.mark.parametrize("name", [n for n in PRESENT if n.startswith("bipartite")])
@pytest.mark.parametrize("weighted", [False, True])
def test_recorded_round(name, weighted):
    recorded = load_file(RECORDED / f"{name}.safetensors")
    x = recorded["x"]
    size = recorded["size_in"].squeeze(-1) if weighted else torch.ones(x.shape[:2])
    first = torch.arange(x.shape[1]).expand(len(x), -1)
    sums, size, _ = merge_round(x * size[..., None], size, first, INDEX[name]["r"])
    tokens = sums / size[..., None]
    suffix = "" if weighted else "_size1"
    out = recorded["out" if weighted else "out_size1"]
    assert torch.allclose(tokens, out, atol=1e-6)
    assert torch.allclose(size, recorded[f"size_out{suffix}"].squeeze(-1), atol=1e-5)


def test_clusters_come_in_the_order_of_their_earliest_member():
    e = torch.eye(4)
    # 0 and 3 alike, 1 and 4 alike; 2 and 5 stand alone.
    tokens = torch.stack([e[0], e[1], e[2], e[0] * 3, e[1] * 3, e[3]])[None]
    merged, size, place = merge_to(tokens, 4)
    assert torch.equal(merged[0], torch.stack([e[0] * 2, e[1] * 2, e[2], e[3]]))
    assert size.tolist() == [[2, 2, 1, 1]]
    assert place.tolist() == [[0, 1, 2, 5]]


def test_of_equals_the_first_wins():
    tokens = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])  # all of one direction
    merged, size, _ = merge_to(tokens, 3)
    assert merged.flatten().tolist() == [1.5, 3, 4]  # the first even one, into the first odd one
    assert size.tolist() == [[2, 1, 1]]


def test_a_zero_token_is_similar_to_nothing():
    x = torch.randn(1, 4, 8)
    x[0, 1] = 0
    assert torch.isfinite(cosine(x, x)).all()
    assert (cosine(x, x)[0, 1] == 0).all()


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=50),
    st.integers(1, 500),
    st.randoms(use_true_random=False),
)
def test_a_budget_is_shared_out_exactly_and_evenly(room, max_tokens, random):
    weight = [random.randint(1, 4) for _ in room]
    shares = allot(room, max_tokens, weight)
    assert sum(shares) == min(max_tokens, sum(room))
    assert all(0 <= share <= space for share, space in zip(shares, room, strict=True))
    cut = [i for i in range(len(room)) if shares[i] < room[i]]  # those that wanted more
    if cut:
        assert max(shares) <= min(shares[i] for i in cut) + 1
        low = min(shares[i] for i in cut)
        ahead = [weight[i] for i in range(len(room)) if room[i] > low and shares[i] == low + 1]
        behind = [weight[i] for i in cut if shares[i] == low]
        assert not ahead or not behind or min(ahead) >= max(behind)


def test_the_most_chosen_frames_get_what_is_left_over():
    selection = Selection(torch.eye(4), torch.tensor([1.0, 5.0, 2.0, 5.0]))
    tokens = torch.randn(4, 3, 8)
    assert BudgetMerger()(tokens, 6, selection).slot.bincount().tolist() == [1, 2, 1, 2]
    assert BudgetMerger()(tokens, 1, selection).frame.tolist() == [1]
    assert BudgetMerger()(tokens, 3, selection).frame.tolist() == [1, 2, 3]


def test_shares_can_be_given():
    tokens = torch.randn(3, 5, 8)
    merged = BudgetMerger()(tokens, [2, 0, 9])
    assert merged.slot.tolist() == [0, 0, 2, 2, 2, 2, 2]
    assert torch.equal(merged.tokens[2:], tokens[2])


def slow_clusters(tokens, target):
    """Which of a frame's (T, H) tokens become one, one pair at a time: sets of places.

    As the paper tells it, in float64, by lists and loops.
    """
    groups = [{i} for i in range(len(tokens))]
    means = list(tokens.double())
    while len(groups) > target:
        half = len(groups) // 2
        merges = half if half > target else len(groups) - target
        even, odd = range(0, len(groups), 2), range(1, len(groups), 2)
        alike = {
            (i, j): float(torch.cosine_similarity(means[i], means[j], dim=0, eps=1e-12))
            for i in even
            for j in odd
        }
        best = {i: max(odd, key=lambda j, i=i: alike[i, j]) for i in even}
        leaving = sorted(even, key=lambda i: -alike[i, best[i]])[:merges]
        staying = sorted(set(even) - set(leaving), key=lambda i: -alike[i, best[i]])
        joined = {j: set(groups[j]) for j in odd}
        for i in leaving:
            joined[best[i]] |= groups[i]
        groups = [groups[i] for i in staying] + [joined[j] for j in odd]
        means = [tokens.double()[sorted(group)].mean(dim=0) for group in groups]
    return sorted(groups, key=min)


def drawn(data, width):
    """(M, R, width) tokens and a share for each frame."""
    frames, room = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 24))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    shares = [data.draw(st.integers(0, room)) for _ in range(frames)]
    return torch.randn(frames, room, width, generator=rng), shares


@settings(deadline=None)
@given(st.data())
def test_a_token_stands_where_its_earliest_member_stood(data):
    tokens, shares = drawn(data, 8)
    merged = BudgetMerger()(tokens, shares)
    testing.check_time_order(merged)
    assert merged.place.dtype == torch.int64
    for row, share in enumerate(shares):
        of = merged.slot == row
        wanted = slow_clusters(tokens[row], share) if share else []
        assert merged.place[of].tolist() == [min(group) for group in wanted]
        assert merged.size[of].tolist() == [len(group) for group in wanted]
        for token, group in zip(merged.tokens[of], wanted, strict=True):
            assert torch.allclose(token, tokens[row, sorted(group)].mean(dim=0), atol=1e-5)


@pytest.mark.parametrize("max_tokens", [None, 100, [5, 5]])
def test_without_merging_places_count_on(max_tokens):
    merged = BudgetMerger()(torch.randn(2, 5, 8), max_tokens)
    assert merged.place.tolist() == [0, 1, 2, 3, 4] * 2
    assert torch.equal(merged.with_tokens(torch.zeros(10, 3)).place, merged.place)


@settings(deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_levels_go_along_in_the_weights_of_their_tokens(data, dtype):
    """Levels that are an identity matrix come out as the weights themselves."""
    tokens, shares = drawn(data, 8)
    frames, room, width = tokens.shape
    tokens = tokens.to(dtype)
    identity = torch.eye(room, dtype=dtype).expand(frames, -1, -1)
    # A level far larger than the tokens: it must not be compared.
    with_levels = torch.cat([tokens, identity, 100 * tokens.flip(1)], dim=2)
    merged = BudgetMerger(similarity_width=width)(with_levels, shares)
    alone = BudgetMerger()(tokens, shares)
    for name in ("slot", "place", "size"):
        assert torch.equal(getattr(merged, name), getattr(alone, name))
    exact = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    assert torch.allclose(merged.tokens[:, :width].float(), alone.tokens.float(), atol=exact)
    weights = merged.tokens[:, width : width + room].float()
    members = weights > 0
    assert torch.equal(members.sum(dim=1).float(), merged.size)
    assert torch.equal(members.int().argmax(dim=1), merged.place)
    assert torch.allclose(weights * merged.size[:, None], members.float(), atol=exact)
    for row in range(frames):
        of = merged.slot == row
        for part in (slice(0, width), slice(width + room, None)):
            wanted = weights[of] @ with_levels[row, :, part].float()
            assert torch.allclose(merged.tokens[of, part].float(), wanted, rtol=exact, atol=exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_merged_in_float32_and_rounded_once(dtype):
    tokens = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    merged, size, place = merge_to(tokens, 3)
    exact = merge_to(tokens.float(), 3)
    assert merged.dtype == dtype and size.dtype == torch.float32
    assert torch.equal(merged, exact[0].to(dtype))
    assert torch.equal(size, exact[1]) and torch.equal(place, exact[2])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (0, ValueError, "similarity_width: got 0, wanted an int >= 1"),
        (1.5, TypeError, "similarity_width: got 1.5"),
    ],
)
def test_a_wrong_similarity_width_is_named(given, error, message):
    with pytest.raises(error, match=message):
        BudgetMerger(similarity_width=given)


def test_tokens_narrower_than_what_is_compared_are_named():
    with pytest.raises(ValueError, match="tokens: got width 4, wanted at least similarity_width=8"):
        BudgetMerger(similarity_width=8)(torch.zeros(2, 3, 4), 4)


def parts_of(merged):
    return merged.tokens, merged.slot, merged.place, merged.size


@pytest.mark.parametrize(
    ("count", "width", "kinds"), [(64, 96, 64), (512, 96, 512), (512, 96, 7), (1024, 32, 100)]
)
def test_the_same_bits_whatever_the_threads(count, width, kinds):
    """Also of tokens of which many are alike to the bit, as those of black bars are."""
    rng = torch.Generator().manual_seed(count)
    tokens = torch.randn(2, kinds, width, generator=rng)
    tokens = tokens[:, torch.randint(0, kinds, (count,), generator=rng)]
    threads = torch.get_num_threads()
    try:
        runs = []
        for number in (1, 4, 3, 4, 1):
            torch.set_num_threads(number)
            runs.append(parts_of(BudgetMerger()(tokens, [count // 4, count // 2])))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


def test_what_is_deterministic_by_declaration():
    tokens = torch.randn(2, 33, 8, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        BudgetMerger()(tokens, [9, 20]).tokens.square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert tokens.grad is not None and bool((tokens.grad != 0).any(dim=2).all())


@settings(deadline=None)
@given(st.data())
def test_a_frame_is_merged_the_same_beside_others(data):
    tokens, shares = drawn(data, 8)
    together = BudgetMerger()(tokens, shares)
    for row, share in enumerate(shares):
        of = together.slot == row
        alone = BudgetMerger()(tokens[row : row + 1], [share])
        assert torch.equal(together.place[of], alone.place)
        assert torch.equal(together.size[of], alone.size)
        assert torch.allclose(together.tokens[of], alone.tokens, atol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 12), st.integers(0, 2**31))
def test_a_gpus_ways_find_the_same(batch, left, leaving, seed):
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(batch, left, 5, generator=rng)
    into = torch.randint(0, left, (batch, leaving), generator=rng)
    rows = torch.randn(batch, leaving, 5, generator=rng)
    ways = [start.clone(), start.clone()]
    for add, of in zip((add_in_turn, add_by_product), ways, strict=True):
        add(of, into, rows)
    assert torch.allclose(*ways, atol=1e-5)
    for row in range(batch):
        for place in range(left):
            wanted = start[row, place] + rows[row, into[row] == place].sum(dim=0)
            assert torch.allclose(ways[0][row, place], wanted, atol=1e-5)
    ties = torch.randint(0, 3, (batch, left, 6), generator=rng).float()
    best, place = largest(ties)
    assert torch.equal(place, first_max(ties))
    assert torch.equal(best, ties.gather(2, place[..., None]).squeeze(2))


def test_its_cost_can_be_measured():
    example = Path(__file__).parents[1] / "examples" / "merge_speed.py"
    out = subprocess.run(
        [sys.executable, example, "--tokens", "16,64", "--widths", "8", "--seconds", "0.01"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rows = re.findall(r"^ +(\d+) to +(\d+) +8 .* ms +\d+\.\d+ +\d+\.\d+$", out, re.M)
    assert rows == [("16", "4"), ("16", "8"), ("64", "16"), ("64", "32")]


def test_gradients_reach_every_token():
    tokens = torch.randn(2, 9, 4, requires_grad=True)
    BudgetMerger()(tokens, 5).tokens.sum().backward()
    assert tokens.grad is not None and bool((tokens.grad != 0).all())


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "error", "message"),
    [
        (torch.zeros(2, 3), 4, ValueError, r"tokens: got shape \(2, 3\), wanted \(M, R, H\)"),
        (torch.zeros(2, 3, 4).long(), 4, ValueError, "tokens: got dtype torch.int64"),
        (torch.full((2, 3, 4), float("nan")), 4, ValueError, "tokens: got NaN or inf"),
        (torch.zeros(2, 3, 4), 0, ValueError, "max_tokens: got 0, wanted an int >= 1"),
        (torch.zeros(2, 3, 4), [1], ValueError, "max_tokens: got 1 shares, wanted 2"),
        (torch.zeros(2, 3, 4), [1, -1], ValueError, "max_tokens: got -1, wanted an int >= 0"),
        (torch.zeros(2, 3, 4), 2.5, TypeError, r"max_tokens: got 2.5 \(float\)"),
    ],
)
def test_wrong_input_is_named(tokens, max_tokens, error, message):
    with pytest.raises(error, match=message):
        BudgetMerger()(tokens, max_tokens)


def test_a_selection_of_other_length_is_named():
    with pytest.raises(ValueError, match="selection: got 3 frames, wanted 2 as tokens"):
        BudgetMerger()(torch.zeros(2, 3, 4), 4, Selection.everything(3))
