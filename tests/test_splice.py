from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvllm_adapters.hosts.splice import placeholder_rows, places_of_ids, splice

VIDEO, IMAGE, WIDTH = -201, 7, 2  # a placeholder may be negative or a word of the vocabulary


def embed(ids):
    """A word's embedding is its id, so that the result can be read."""
    assert bool((ids >= 0).all()) and not bool((ids == IMAGE).any())
    return ids[..., None].expand(*ids.shape, WIDTH).float()


def visual(*values):
    return torch.tensor(values).float()[:, None].expand(-1, WIDTH)


def test_tokens_take_the_place_of_their_placeholder():
    ids = torch.tensor([[1, VIDEO, 2, IMAGE], [3, 4, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, 2, -100], [3, 4, -100, -100]])
    out = splice(
        ids, embed, [visual(50, 51, 52), visual(60)], {VIDEO, IMAGE},
        attention_mask=mask, labels=labels,
    )  # fmt: skip
    assert out.inputs_embeds[..., 0].tolist() == [[1, 50, 51, 52, 2, 60], [3, 4, 0, 0, 0, 0]]
    assert out.attention_mask.tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert out.position_ids.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 1, 1, 1, 1]]
    assert out.labels.tolist() == [[-100, -100, -100, -100, 2, -100], [3, 4] + [-100] * 4]
    assert placeholder_rows(ids, {VIDEO, IMAGE}, mask) == [0, 0]


@given(st.data(), st.sampled_from(["left", "right"]), st.sampled_from(["left", "right"]))
def test_each_row_is_as_if_alone_whatever_the_padding(data, side_in, side_out):
    words = st.integers(1, 6) | st.sampled_from([VIDEO, IMAGE])
    texts = data.draw(st.lists(st.lists(words, min_size=1, max_size=8), min_size=1, max_size=4))
    longest = max(map(len, texts))

    def padded(row, filler):
        space = [filler] * (longest - len(row))
        return row + space if side_in == "right" else space + row

    # Padding may look like a placeholder: the mask says that it is none.
    ids = torch.tensor([padded(row, IMAGE) for row in texts])
    mask = torch.tensor([padded([1] * len(row), 0) for row in texts])
    count = iter(range(100, 999))
    inputs = [
        [
            visual(*[next(count) for _ in range(data.draw(st.integers(0, 3)))])
            for _ in [i for i in row if i in (VIDEO, IMAGE)]
        ]
        for row in texts
    ]
    with places_of_ids() as watched:
        together = splice(
            ids, embed, list(chain(*inputs)), {VIDEO, IMAGE},
            attention_mask=mask, labels=ids, padding_side=side_out,
        )  # fmt: skip
    (places,) = watched
    for row, mine, embeds, labels in zip(ids, mask.bool(), places, together.labels, strict=True):
        assert bool(((embeds >= 0) & (embeds < max(1, together.labels.shape[1]))).all())
        words = mine & (row != VIDEO) & (row != IMAGE)
        assert torch.equal(labels[embeds[words]], row[words])
        assert bool((embeds[mine].diff() >= 0).all())
    for i, (row, tokens) in enumerate(zip(texts, inputs, strict=True)):
        row_ids = torch.tensor([row])
        alone = splice(row_ids, embed, tokens, {VIDEO, IMAGE}, labels=row_ids)
        kept = together.attention_mask[i].bool()
        assert torch.equal(together.inputs_embeds[i, kept], alone.inputs_embeds[0])
        assert torch.equal(together.position_ids[i, kept], alone.position_ids[0])
        assert torch.equal(together.labels[i, kept], alone.labels[0])
        assert bool((together.labels[i, ~kept] == -100).all())
        run = kept.int().diff()
        assert (run <= 0).all() if side_out == "right" else (run >= 0).all()


def test_gradients_reach_visual_tokens_and_words():
    table = torch.nn.Embedding(9, WIDTH)
    tokens = torch.randn(3, WIDTH, requires_grad=True)
    splice(torch.tensor([[1, VIDEO]]), table, [tokens], {VIDEO}).inputs_embeds.sum().backward()
    assert tokens.grad.tolist() == [[1, 1]] * 3
    assert table.weight.grad.sum(dim=1).tolist() == [0, 2] + [0] * 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual": []}, "visual: got 0 inputs, wanted 1, the number of placeholders"),
        ({"visual": [visual(1), visual(2)]}, "visual: got 2 inputs, wanted 1"),
        (
            {"attention_mask": torch.ones(1, 3)},
            r"attention_mask: got shape \(1, 3\), wanted \(1, 2",
        ),
        ({"labels": torch.ones(2, 2)}, r"labels: got shape \(2, 2\), wanted \(1, 2\)"),
        ({"padding_side": "both"}, "padding_side: got 'both', wanted 'left' or 'right'"),
    ],
)
def test_wrong_input_is_named(change, message):
    arguments = {
        "input_ids": torch.tensor([[1, VIDEO]]),
        "embed": embed,
        "visual": [visual(1)],
        "placeholders": {VIDEO},
    }
    with pytest.raises(ValueError, match=message):
        splice(**(arguments | change))
