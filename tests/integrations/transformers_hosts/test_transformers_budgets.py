"""Budgets hold in every family, to the token, whatever is asked for."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
import torch
from budgets import PLENTY, count, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import group_of, longer, placeholders
from tiny import FAMILIES, Inputs, family

from bvllm_adapters.question import asking
from bvllm_transformers.budget import budgeted
from bvllm_transformers.families import family_of

none_or = st.none() | st.integers(1, 7)


@cache
def prompt(name: str, groups: int) -> Inputs:
    return longer(family(name), family(name).inputs(), groups, seed=groups)


@pytest.mark.parametrize("name", FAMILIES)
@given(
    groups=st.integers(1, 7),
    max_tokens=st.integers(1, 40),
    num_frames=none_or,
    tokens_per_frame=none_or,
    selector=st.sampled_from(["coverage", "uniform", "random"]),
)
@settings(deadline=None, max_examples=8, derandomize=True)
def test_budgets_hold_to_the_token(
    name: str,
    groups: int,
    max_tokens: int,
    num_frames: int | None,
    tokens_per_frame: int | None,
    selector: str,
) -> None:
    one, inputs = family(name), prompt(name, groups)
    ids = inputs["input_ids"][0]
    tail = one.frame_of_placeholder.count(-1)
    each = (count(ids, one) - tail) // groups
    asked = {"num_frames": num_frames, "tokens_per_frame": tokens_per_frame}
    if groups == 1:
        asked["tokens_per_frame"] = None  # what is of one frame alone is an image
    with wrapped(one.shared_model(), max_tokens=max_tokens, selector=selector, **asked) as model:
        with torch.no_grad(), asking("What?"):  # by which "random" draws
            made = budgeted(model, inputs)
    frames = min(num_frames or groups, groups)
    room = frames * min(asked["tokens_per_frame"] or each, each)
    left = made["input_ids"][0]
    assert count(left, one) == min(max_tokens, room + tail)

    if groups == 2 and family_of(one.shared_model()).split.loose:
        return  # words between two pictures that are not alike may be the user's: they stay
    # Other ids are in order and complete, but for the text of groups that have gone.
    hole = ids[placeholders(inputs)[0]]
    of = group_of(one, inputs)
    own = of if bool((of[ids != hole] >= 0).any()) else torch.full_like(of, -1)
    said = left[left != hole].tolist()
    words = [(int(w), int(g)) for w, g in zip(ids, own, strict=True) if w != hole]
    apart = bool((own >= 0).any())
    choices = combinations(range(groups), frames) if apart else [()]
    smaller = [c for k in range(1, frames) for c in combinations(range(groups), k)] if apart else []
    assert any(
        said == [word for word, group in words if group < 0 or group in kept]
        for kept in [*choices, *smaller]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_model_is_given(name: str) -> None:
    """As many embeddings as ids and as places, and all of the tokens that were left."""
    one = family(name)
    inputs = one.inputs()
    model = one.shared_model()
    seen: dict[str, torch.Tensor] = {}
    with wrapped(model, max_tokens=5):
        handle = model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
        )
        with torch.no_grad():
            made = budgeted(model, inputs)
            logits = model(**inputs).logits
        handle.remove()
    length = made["input_ids"].shape[1]
    assert seen["inputs_embeds"].shape[1] == logits.shape[1] == length
    if seen.get("position_ids") is not None:
        assert seen["position_ids"].shape[-1] == length
    parts = next(iter(made["mm_encoder_outputs"].values())).pooler_output
    assert sum(part.shape[:-1].numel() for part in parts) == 5 == count(made["input_ids"], one)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_budget_for_all_leaves_the_arguments_alone(name: str) -> None:
    one = family(name)
    inputs = one.inputs()
    with wrapped(one.shared_model(), max_tokens=PLENTY) as model:
        made = budgeted(model, inputs)
    assert all(made[key] is value for key, value in inputs.items())
