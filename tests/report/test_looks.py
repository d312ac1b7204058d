"""What stages note of where their tokens come from: it is true, and it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bvllm_adapters import (
    BalancedTokenizer,
    BalancedTokenizerConfig,
    FrameFeatures,
    QFormer,
    Selection,
    testing,
)
from bvllm_adapters.budget_merger import BudgetMerger
from bvllm_adapters.context import attention_maps, is_looking, looking, noted_maps

QUESTIONS = ["What is taped to the wall?", ""]
SMALL: dict[str, Any] = {
    "vision_width": 16, "num_frames": 6, "tokens_per_frame": 5, "qformer_width": 24,
    "qformer_layers": 3, "qformer_heads": 2, "llm_width": 20, "max_tokens": 11,
}  # fmt: skip


def video(frames: int, patches: int = 9, seed: int = 0) -> FrameFeatures:
    noise = torch.Generator().manual_seed(seed)
    return FrameFeatures(
        torch.randn(frames, 16, generator=noise), torch.randn(frames, patches, 16, generator=noise)
    )


def small(**more: Any) -> BalancedTokenizer:
    torch.manual_seed(0)
    return BalancedTokenizer(BalancedTokenizerConfig(**SMALL | more)).eval()


@given(
    frames=st.integers(1, 5),
    room=st.integers(1, 33),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_members_are_those_whose_mean_a_token_is(frames, room, share, seed):
    noise = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, room, 8, generator=noise)
    budget = 1 + int(share * frames * room)
    with looking():
        made = BudgetMerger()(tokens, budget)
    plain = BudgetMerger()(tokens, budget)
    assert torch.equal(made.tokens, plain.tokens) and plain.members is None
    assert made.members.shape == (frames, room)
    flat, members = tokens.flatten(0, 1), made.members.flatten()
    for token in range(len(made)):
        of = members == token
        assert int(of.sum()) == int(made.size[token])
        torch.testing.assert_close(flat[of].mean(dim=0), made.tokens[token])
        row, place = divmod(int(of.nonzero()[0]), room)  # its earliest member
        assert (row, place) == (int(made.slot[token]), int(made.place[token]))
    gone = torch.bincount(made.slot, minlength=frames) == 0
    assert bool((made.members[gone] == -1).all()) and bool((made.members[~gone] >= 0).all())


def test_maps_are_the_attention_that_the_tokens_are_made_with():
    """Of one layer and head whose values are the patches' numbers: what comes out of attention is
    then the map itself."""
    torch.manual_seed(0)
    qformer = QFormer(
        width=8, heads=1, layers=1, ffn_width=8, visual_width=8, cross_attention_frequency=1,
        vocab_size=30522,
    ).eval()  # fmt: skip
    cross = qformer.layers[0].cross_attention
    queries, visual = torch.randn(2, 3, 8), torch.randn(2, 8, 8)
    read = []
    cross.output.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    cross.value = nn.Module()  # the i-th patch says i
    cross.value.forward = lambda source: torch.eye(8).expand(len(source), -1, -1)
    with looking(), attention_maps() as maps:
        qformer(queries, visual)
    (only,) = maps
    torch.testing.assert_close(only, read[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_where_tokens_looked(dtype, autocast):
    tokenizer = small().to(dtype)
    videos = [video(9), video(4, patches=6, seed=1), video(1, seed=2)]
    asked = [*QUESTIONS, "Who?"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = tokenizer(videos, asked)
        with looking():
            made = tokenizer(videos, asked)
    for one, other, of in zip(made, plain, videos, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert other.looked is None and other.members is None
        chosen = len(one.selection)
        assert one.looked.shape == (chosen, 5, of.patches.shape[1])
        assert one.looked.dtype == torch.float32 and not one.looked.requires_grad
        torch.testing.assert_close(one.looked.sum(dim=2), torch.ones(chosen, 5))
        assert one.members.shape == (chosen, 5)


def test_a_look_does_not_depend_on_the_batch():
    tokenizer = small()
    videos = [video(9), video(12, seed=1)]
    with torch.no_grad(), looking():
        both = tokenizer(videos, QUESTIONS)
        for i, one in enumerate(both):
            (alone,) = tokenizer([videos[i]], [QUESTIONS[i]])
            torch.testing.assert_close(one.looked, alone.looked, rtol=1e-5, atol=1e-5)
            assert torch.equal(one.members, alone.members)


def test_the_question_moves_the_look():
    tokenizer = small()
    with torch.no_grad(), looking():
        one, other = tokenizer([video(1)] * 2, QUESTIONS)
    assert not torch.equal(one.looked, other.looked)


def test_a_sampler_of_ones_own_has_no_maps():
    class Own(nn.Module):
        def forward(self, frames, text_ids, text_mask):
            return frames[:, :2].repeat(1, 1, 2)[..., :24]

    torch.manual_seed(0)
    config = BalancedTokenizerConfig(**SMALL)
    tokenizer = BalancedTokenizer(config, spatial_sampler=Own()).eval()
    with torch.no_grad(), looking():
        (made,) = tokenizer([video(7)], ["Who?"])
    assert made.looked is None and made.members is not None


def test_members_of_a_hosts_own_tokens():
    config = {"selector": "uniform", "sampler": "none", "projection": "none", "llm_width": 16}
    keep = {k: v for k, v in SMALL.items() if k not in ("tokens_per_frame", "num_frames")}
    tokenizer = BalancedTokenizer(BalancedTokenizerConfig(**keep | config)).eval()
    with looking():
        (made,) = tokenizer([video(7)], ["Who?"])
    assert made.looked is None and made.members.shape == (len(made.selection), 9)


def test_scores_of_each_query_go_along():
    tokenizer = small(merge_threshold=0.5, evaluation="soft")
    cls = video(9)
    text = tokenizer.question_tokenizer
    assert text is not None
    with torch.no_grad():
        (made,) = tokenizer([cls], ["Who?"])
        scores = made.selection.query_scores
        assert scores.shape == (6, 9) and scores.dtype == torch.float32
        (other,) = small()([cls], ["Who?"])
    assert torch.equal(scores, other.selection.query_scores)
    best = {int(i) for i in scores.argmax(dim=1)}
    assert best == {*other.selection.frame.tolist()}


def test_nothing_is_asked_for_outside():
    assert not is_looking() and noted_maps() is None
    with attention_maps() as maps:
        small()([video(3)], ["Who?"])
    assert maps == []
    with looking(False):
        assert not is_looking()
    with pytest.raises(RuntimeError), looking():
        assert is_looking()
        raise RuntimeError
    assert not is_looking()


@given(features=testing.frame_features(width=16), max_tokens=testing.budgets())
def test_a_look_changes_no_bit(features, max_tokens):
    tokenizer = small()
    with torch.no_grad():
        (plain,) = tokenizer([features], ["Who?"], max_tokens=max_tokens)
        with looking():
            (made,) = tokenizer([features], ["Who?"], max_tokens=max_tokens)
    assert torch.equal(plain.tokens, made.tokens) and torch.equal(plain.place, made.place)
    held = torch.bincount(made.members[made.members >= 0].flatten(), minlength=len(made))
    assert held.tolist() == made.size.tolist()


def test_a_selection_keeps_its_scores_in_order():
    selection = Selection.whole(torch.tensor([2, 0]), 3)
    selection.query_scores = torch.ones(2, 3)
    assert selection[torch.tensor([0])].query_scores is selection.query_scores
