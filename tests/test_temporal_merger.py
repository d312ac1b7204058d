from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters import Selection, TemporalMerger
from bvllm_adapters.temporal_merger import leader_clusters


def one_hot(frames, num_frames=10):
    return Selection.of(F.one_hot(torch.tensor(frames), num_frames).float())


def test_equal_choices_become_one_in_time_order():
    merged = TemporalMerger(0.75)(one_hot([7, 2, 5, 2, 0, 2]))
    assert merged.frame.tolist() == [0, 2, 5, 7]
    assert merged.size.tolist() == [1, 3, 1, 1]
    assert merged.weights.unique().tolist() == [0, 1]


def test_nothing_chains_and_nothing_is_lost():
    """Rows at 0, 40, 80 and 120 degrees: neighbours are alike (cos 40 = 0.77), others are not.

    The first leads and takes the second; the third is free to lead and takes the fourth. Linking
    to the nearest would have joined all four, or lost the third.
    """
    angles = torch.deg2rad(torch.tensor([0.0, 40, 80, 120]))
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert leader_clusters(rows, 0.75).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_soft_rows_become_their_mean():
    weights = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.1, 0.9]])
    merged = TemporalMerger(0.75)(Selection.of(weights))
    assert torch.allclose(merged.weights, torch.tensor([[0.85, 0.15, 0.0], [0.0, 0.1, 0.9]]))
    assert merged.size.tolist() == [2, 1]


def test_what_merging_has_moved_is_in_time_order_again():
    # The first and the last become one, which is nearer to the last: behind the one in between.
    weights = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    merged = TemporalMerger(0.7)(Selection.of(weights))
    assert merged.frame.tolist() == [1, 2]
    assert torch.allclose(merged.weights, torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]]))


def test_a_second_merge_weighs_by_size():
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    merged = TemporalMerger(0.5)(Selection(weights, torch.tensor([3.0, 1.0])))
    assert torch.allclose(merged.weights, torch.tensor([[0.875, 0.125]]))
    assert merged.size.tolist() == [4]


@given(st.integers(0, 2**31), st.integers(1, 32), st.integers(1, 60), st.sampled_from([0.3, 0.75]))
def test_every_choice_ends_in_exactly_one_cluster(seed, choices, frames, threshold):
    rng = torch.Generator().manual_seed(seed)
    rows = torch.softmax(torch.randn(choices, frames, generator=rng) / 0.3, dim=1)
    clusters = leader_clusters(rows, threshold)
    assert clusters.sum(dim=0).tolist() == [1] * choices
    unit = F.normalize(rows, dim=1)
    leaders = [int(cluster.nonzero()[0]) for cluster in clusters]
    for cluster, leader in zip(clusters, leaders, strict=True):
        members = cluster.nonzero().squeeze(1)
        assert bool((unit[members] @ unit[leader] >= threshold - 1e-5).all())
    pairs = unit[leaders] @ unit[leaders].T - 2 * torch.eye(len(leaders))
    assert bool((pairs < threshold).all())  # no leader could have joined another


def test_a_threshold_of_one_still_joins_a_row_with_its_copy():
    rng = torch.Generator().manual_seed(0)
    for row in torch.softmax(torch.randn(100, 1, 30, generator=rng), dim=2):
        assert len(TemporalMerger(1.0)(Selection.of(row.repeat(5, 1)))) == 1


def test_gradients_reach_the_choices():
    weights = torch.tensor([[0.9, 0.1], [0.8, 0.2]], requires_grad=True)
    TemporalMerger(0.75)(Selection.of(weights)).weights[0, 0].backward()
    assert weights.grad.tolist() == [[0.5, 0], [0.5, 0]]
