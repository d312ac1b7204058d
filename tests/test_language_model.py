"""What differs between transformers' versions: the cache's name, and whether they were tested."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

import bvllm_adapters as bvllm
from bvllm_adapters.hosts import language_model
from bvllm_adapters.hosts.language_model import (
    CACHE_NAMES,
    bare_language_model,
    cache_field,
    cache_name,
    cache_of,
    language_class,
    one_cache,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


@torch.no_grad()
def test_what_comes_out_under_one_name_goes_in_under_the_other(model: Any) -> None:
    ids = torch.tensor([[3, 4, 5, 6]])
    whole = model(ids).logits[:, -1]
    cache = cache_of(model(ids[:, :3], use_cache=True))
    assert cache.get_seq_length() == 3
    again = model(ids[:, 3:], **{cache_name(model.forward): cache}).logits[:, -1]
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=0)
    assert cache_of(model(ids, use_cache=False)) is None


def test_the_name_is_that_of_the_function() -> None:
    def remote(input_ids: Any, past_key_values: Any = None, **kwargs: Any) -> None: ...
    def today(input_ids: Any, cache: Any = None) -> None: ...
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert cache_name(remote) == "past_key_values"
    assert cache_name(today) == "cache"
    assert cache_name(wrapper) == cache_field() in CACHE_NAMES


def test_one_cache_under_either_name() -> None:
    cache = DynamicCache()
    assert one_cache(cache, None) is one_cache(None, cache) is one_cache(cache, cache) is cache
    assert one_cache(None, None) is None
    with pytest.raises(ValueError, match="cache: got it beside past_key_values, wanted one of"):
        one_cache(cache, DynamicCache())


def test_the_class_of_transformers(model: Any) -> None:
    class Upstream(Qwen2ForCausalLM):
        def get_model(self) -> Any:
            return self.model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    made = Upstream(model.config).eval()
    made.load_state_dict(model.state_dict())
    assert language_class(made) is Qwen2ForCausalLM
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(bare_language_model(made)(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="model: got a Linear, wanted one that derives"):
        language_class(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("version", "told"), [("5.24.1", False), ("5.99.0.dev0", True)])
def test_a_newer_transformers_is_told_once(
    version: str,
    told: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from bvllm_qwen2.tiny import tiny_model

    monkeypatch.setattr(language_model, "version", lambda name: version)
    language_model.tell_if_newer_than_tested.cache_clear()
    made, _ = tiny_model()
    made.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "bvllm_adapters"):
        bvllm.wrap(bvllm.load(tmp_path), max_tokens=9)
    language_model.tell_if_newer_than_tested.cache_clear()
    lines = [record.getMessage() for record in caplog.records]
    assert sum(f"transformers {version} is newer than" in line for line in lines) == told


def test_the_newest_tested_is_that_of_the_constraints() -> None:
    pinned = re.findall(
        r"^transformers==(\d+)\.(\d+)", (ROOT / ".ci/constraints.txt").read_text(), re.M
    )
    assert max((int(major), int(minor)) for major, minor in pinned) == language_model.TESTED
