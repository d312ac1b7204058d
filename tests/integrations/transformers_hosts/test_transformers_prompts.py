"""Prompts of other lengths, and batches of them, are prompts that the model reads right."""

from __future__ import annotations

import pytest
import torch
from prompts import CLIPS, batch, group_of, groups_in, longer, placeholders, take
from tiny import FAMILIES, family


@pytest.mark.parametrize("name", FAMILIES)
def test_all_groups_in_order_are_the_prompt(name: str) -> None:
    one = family(name)
    inputs = one.inputs()
    same = take(one, inputs, range(one.groups))
    assert same.keys() == inputs.keys()
    for key, value in inputs.items():
        assert same[key].equal(value), key
    frames = group_of(one, inputs)[placeholders(inputs)]
    assert tuple(frames.tolist()) == one.frame_of_placeholder


@pytest.mark.parametrize("name", FAMILIES)
def test_any_number_of_groups(name: str) -> None:
    one = family(name)
    inputs, model = one.inputs(), one.shared_model()
    for groups in (1, one.groups + 3):
        other = longer(one, inputs, groups, seed=groups)
        assert groups_in(one, other) == groups
        with torch.no_grad():
            logits = model(**other).logits
        assert logits.shape[1] == other["input_ids"].shape[1]
        assert logits.isfinite().all()
        # The same again from what is no longer the prompt of the files.
        back = take(one, longer(one, other, 4), [3, 0])
        assert groups_in(one, back) == 2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_its_prompts(name: str, side: str) -> None:
    one = family(name)
    first, model = one.inputs(), one.shared_model()
    second = longer(one, first, one.groups if name in CLIPS else 2, seed=5)
    if name in CLIPS:  # no pixels are padded here; the text is
        second = longer_text(second)
    with torch.no_grad():
        together = model(**batch(one, [first, second], side)).logits
        for row, prompt in zip(together, [first, second], strict=True):
            alone = model(**prompt).logits[0]
            row = row[-len(alone) :] if side == "left" else row[: len(alone)]
            # Mixtures of experts and recurrent layers round most: 1.1e-4 of 5.6.
            torch.testing.assert_close(row, alone, rtol=0, atol=3e-4)


def longer_text(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Three words more at the end."""
    shape = inputs["input_ids"].shape
    return {
        key: torch.cat([value, value[:, -3:]], 1) if value.shape == shape else value
        for key, value in inputs.items()
    }


def test_clips_of_two_lengths_are_not_stacked() -> None:
    one = family("llava_onevision")
    first = one.inputs()
    with pytest.raises(ValueError, match="llava_onevision stacks clips"):
        batch(one, [first, longer(one, first, 3)])
