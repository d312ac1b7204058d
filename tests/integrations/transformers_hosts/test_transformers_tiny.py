"""Every family builds, runs and answers, loud and the same each time."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import FAMILIES, available, family

POSSIBLE = [name for name in FAMILIES if available(name)]


@pytest.mark.parametrize("name", FAMILIES)
def test_it_runs_and_answers(name: str) -> None:
    one = family(name)
    model, inputs = one.shared_model(), one.inputs()
    assert type(model).__name__ == one.class_name
    assert not model.training
    with torch.no_grad():
        logits = model(**inputs).logits
        other = model(**{**inputs, **redrawn(inputs)}).logits
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert logits.isfinite().all()
    assert (logits - other)[0, -1].abs().max() > 0.1  # the video is heard at the end
    length = inputs["input_ids"].shape[1]
    assert ids[:, :length].equal(inputs["input_ids"])
    assert ids.shape == (1, length + 4)


def redrawn(inputs: tiny.Inputs) -> tiny.Inputs:
    generator = torch.Generator().manual_seed(3)
    names = [name for name in inputs if name.startswith("pixel_values")]
    return {name: torch.randn(inputs[name].shape, generator=generator) for name in names}


@pytest.mark.parametrize("name", POSSIBLE[:1])
def test_a_model_of_ones_own(name: str) -> None:
    one = family(name)
    before = torch.get_rng_state()
    own, other = one.model(), one.model(seed=1)
    assert torch.get_rng_state().equal(before)
    weights = dict(own.named_parameters())
    for key, value in one.shared_model().named_parameters():
        assert value.equal(weights[key])
        assert value.data_ptr() != weights[key].data_ptr()
    assert any(not value.equal(weights[key]) for key, value in other.named_parameters())
    assert one.model(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert one.shared_model().dtype == torch.float32


def test_a_family_that_is_not_there_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.INDEX, "future", {"class": "FutureForConditionalGeneration"})
    assert not available("future")
    with pytest.raises(pytest.skip.Exception, match="has no FutureForConditionalGeneration"):
        family("future")


@pytest.mark.parametrize(
    ("installed", "row", "why"),
    [
        ("5.17.0", {"class": "BertModel"}, "BertModel of transformers 5.17.0 takes no mm_encoder"),
        ("5.23.0", tiny.INDEX["kimi_k25"], "reads another prompt than 5.24|has no Kimi|takes no"),
    ],
)
def test_a_family_of_older_days_is_skipped(
    installed: str, row: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.transformers, "__version__", installed)
    monkeypatch.setitem(tiny.INDEX, "kimi_k25", row)
    assert not available("kimi_k25")
    with pytest.raises(pytest.skip.Exception, match=why):
        family.__wrapped__("kimi_k25")
