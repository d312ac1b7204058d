from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bvllm_adapters import FrameFeatures, Selection
from bvllm_adapters.features import mix

same = nn.Identity()


def video(**change):
    arguments = {
        "cls": torch.randn(3, 4),
        "patches": torch.randn(3, 2, 4),
        "seconds": torch.tensor([0.0, 0.5, 2.0]),
    }
    return FrameFeatures(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cls": torch.zeros(0, 4)},
            r"cls: got shape \(0, 4\), wanted \(T, C\) with no empty axis",
        ),
        ({"cls": torch.zeros(3)}, r"cls: got shape \(3,\), wanted \(T, C\)"),
        ({"cls": torch.zeros(3, 4).long()}, "cls: got dtype torch.int64, wanted floating point"),
        ({"cls": torch.full((3, 4), float("inf"))}, "cls: got NaN or inf"),
        ({"cls": [[1.0]]}, "cls: got list, wanted a tensor"),
        ({"patches": torch.zeros(2, 2, 4)}, "patches: got 2 frames, wanted 3 as cls"),
        ({"patches": torch.zeros(3, 0, 4)}, r"patches: got shape \(3, 0, 4\)"),
        ({"patches": "all"}, "patches: got str, wanted a .* tensor or a function"),
        ({"seconds": torch.arange(2.0)}, "seconds: got 2 times, wanted 3 as cls"),
        ({"seconds": torch.tensor([0.0, 2, 1])}, "seconds: got times that go back"),
        ({"seconds": torch.arange(3)}, "seconds: got dtype torch.int64"),
    ],
)
def test_wrong_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        video(**change)


def test_large_numbers_are_no_infinity():
    huge = torch.full((3, 4), 3e38)  # their sum is beyond float32
    assert video(cls=huge).cls is huge


def test_without_times_there_is_one_frame_a_second():
    assert video(seconds=None).seconds.tolist() == [0, 1, 2]


def test_what_a_host_says_of_its_patches_is_kept_as_it_is():
    layout = {"grid_thw": torch.tensor([[3, 4, 4]])}
    assert video(layout=layout).layout is layout
    assert video().layout is None


def test_pooled_features_stand_for_towers_without_cls():
    patches = torch.tensor([[[1.0, 5.0], [3.0, 1.0]]])
    assert FrameFeatures.pooled(patches, "mean").cls.tolist() == [[2, 3]]
    assert FrameFeatures.pooled(patches, "max").cls.tolist() == [[3, 5]]
    with pytest.raises(ValueError, match="how: got 'median', wanted 'mean' or 'max'"):
        FrameFeatures.pooled(patches, "median")


def test_one_hot_weights_gather_and_ask_only_for_chosen_frames():
    patches = torch.randn(5, 2, 4)
    asked = []

    def read(indices):
        asked.extend(indices.tolist())
        return patches[indices]

    weights = torch.eye(5)[[1, 1, 4]]
    assert torch.equal(mix(Selection.of(weights), read, same), patches[[1, 1, 4]])
    assert asked == [1, 4]


def test_soft_weights_mix_after_the_transform():
    patches, weights = torch.randn(3, 2, 4), torch.tensor([[0.25, 0.75, 0.0]])
    norm = nn.LayerNorm(4)
    wanted = 0.25 * norm(patches[0]) + 0.75 * norm(patches[1])
    assert torch.allclose(mix(Selection.of(weights), patches, norm)[0], wanted, atol=1e-6)


def test_gradients_need_all_frames_even_of_one_hot_weights():
    weights = torch.eye(3)[[1]].requires_grad_()
    patches = torch.randn(3, 2, 4)
    mix(Selection.of(weights), patches, same).sum().backward()
    assert torch.allclose(weights.grad[0], patches.sum(dim=(1, 2)))


def test_gradients_reach_the_frames_of_a_limited_support_and_ask_for_no_others():
    weights = torch.eye(4)[[1, 1]].requires_grad_()
    support = torch.tensor([[True, True, False, False], [False, True, True, False]])
    patches, asked = torch.randn(4, 2, 4), []

    def read(indices):
        asked.extend(indices.tolist())
        return patches[indices]

    mix(Selection(weights, torch.ones(2), support), read, same).sum().backward()
    assert asked == [0, 1, 2]
    assert torch.allclose(weights.grad[0, :3], patches[:3].sum(dim=(1, 2)))
    assert not weights.grad[:, 3].any()


def test_a_reader_that_returns_something_else_is_named():
    weights = torch.eye(3)
    with pytest.raises(ValueError, match=r"patches\(indices\): got 2 frames, wanted the 3"):
        mix(Selection.of(weights), lambda i: torch.zeros(2, 2, 4), same)
    with pytest.raises(ValueError, match=r"patches\(indices\): got NaN or inf"):
        mix(Selection.of(weights), lambda i: torch.full((3, 2, 4), float("nan")), same)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_patches_are_looked_at_when_they_are_chosen_and_not_before(bad):
    patches = torch.randn(3, 2, 4)
    patches[1, 1, 2] = bad
    given = video(patches=patches)
    for chosen in (Selection.whole(torch.tensor([0, 2]), 3), Selection.of(torch.eye(3)[[0, 2]])):
        assert torch.equal(mix(chosen, given.patches, same), patches[[0, 2]])
    soft = torch.tensor([[0.5, 0.5, 0.0]])
    for chosen in (Selection.everything(3), Selection.of(torch.eye(3)[[1]]), Selection.of(soft)):
        with pytest.raises(ValueError, match="patches: got NaN or inf, wanted finite numbers"):
            mix(chosen, given.patches, same)


def test_making_features_reads_no_patch():
    with Read() as read:
        given = video(patches=torch.ones(3, 2, 4))
    assert read.largest == 12  # cls
    with Read() as read:
        mix(Selection.whole(torch.tensor([2]), 3), given.patches, same)
    assert read.summed == [8]


class Read(TorchDispatchMode):
    """Counts the numbers of the largest tensor that anything is computed of, and what is summed."""

    def __init__(self):
        super().__init__()
        self.largest, self.summed = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        sizes = [x.numel() for x in args if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        if func is torch.ops.aten.sum.default:
            self.summed += sizes
        return func(*args, **(kwargs or {}))


def test_time_order_is_by_main_frame_then_mean_frame_then_as_it_was():
    weights = torch.tensor(
        [[0.0, 0.6, 0.4], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.4, 0.6, 0.0]]
    )
    ordered = Selection(weights, torch.arange(5.0)).in_time_order()
    assert ordered.size.tolist() == [3, 1, 4, 0, 2]
    assert ordered.frame.tolist() == [0, 1, 1, 1, 2]


def test_an_image_takes_all_choices():
    image = Selection.single_frame(32)
    assert image.weights.tolist() == [[1]] and image.size.tolist() == [32]
