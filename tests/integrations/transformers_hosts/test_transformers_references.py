"""The references agree with the model and with one another, wherever each is said to hold."""

from __future__ import annotations

import pytest
import torch
from prompts import group_of, longer, placeholders, take
from references import (
    NEEDS_IDS,
    STATEFUL,
    TIME_IN_TOWER,
    embedded,
    kept,
    masked,
    native,
    places_of,
)
from tiny import FAMILIES, family

ROUNDING = {"rtol": 0, "atol": 2e-5}  # of logits up to 7


@pytest.mark.parametrize("name", FAMILIES)
def test_all_kept_is_the_model(name: str) -> None:
    one = family(name)
    model, inputs = one.shared_model(), one.inputs()
    every = kept(inputs, torch.ones(len(placeholders(inputs)), dtype=torch.bool))
    assert every.all()
    with torch.no_grad():
        logits = model(**inputs).logits
    assert native(model, one, inputs, range(one.groups)).equal(logits)
    assert masked(model, inputs, every).equal(logits)
    if name not in NEEDS_IDS:
        assert embedded(model, inputs, every).equal(logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_groups_alone_are_the_others_masked_out(name: str) -> None:
    """Whole groups go with their text, and positions are those of what is left."""
    one = family(name)
    model = one.shared_model()
    inputs = longer(one, one.inputs(), 5, seed=1)
    of = group_of(one, inputs)
    for groups in ([0, 4], [2], [0, 1, 3]):
        keep = (of < 0) | torch.isin(of, torch.tensor(groups))
        alone = native(model, one, inputs, groups)
        places = places_of(model, inputs, keep, take(one, inputs, groups))
        hidden = masked(model, inputs, keep, places)
        if name in STATEFUL | TIME_IN_TOWER:
            assert (hidden - alone).abs().max() > 0.1  # else it could go from the list
        else:
            torch.testing.assert_close(hidden, alone, **ROUNDING)
        if name not in NEEDS_IDS | TIME_IN_TOWER:
            torch.testing.assert_close(embedded(model, inputs, keep, places), alone, **ROUNDING)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_kept_are_the_others_masked_out(name: str) -> None:
    """Some tokens of a group go and its text stays."""
    if name in NEEDS_IDS | STATEFUL:
        pytest.skip("only one reference takes tokens here")
    one = family(name)
    model, inputs = one.shared_model(), one.inputs()
    generator = torch.Generator().manual_seed(2)
    choice = torch.rand(len(placeholders(inputs)), generator=generator) < 0.5
    keep = kept(inputs, choice)
    assert int(keep.sum()) == len(keep) - int((~choice).sum())
    hidden = masked(model, inputs, keep)
    torch.testing.assert_close(embedded(model, inputs, keep), hidden, **ROUNDING)
    with torch.no_grad():
        assert (model(**inputs).logits[0, -1] - hidden[0, -1]).abs().max() > 0.1
