"""What wrapping leaves alone: modes, dtypes, others' LoRA, other classes; and what it takes."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_hosts import TINY_HOSTS, native, wrap_small

import bvllm_adapters as bvllm
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.wrap import unwrapped
from bvllm_adapters.training.stages import decoder_linears
from bvllm_adapters.weights.lora_layers import add_lora, lora_layers

# peft asks transformers for a name that transformers is about to change.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
TEXT = torch.arange(5, 13)[None]
wrapping = import_module("bvllm_adapters.hosts.wrap")  # the module, which has a function's name


@pytest.fixture(scope="module", params=TINY_HOSTS, ids=lambda host: host.__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return request.param(tmp_path_factory.mktemp("checkpoint"))[0]


@pytest.fixture
def model(made: Any) -> Any:
    return copy.deepcopy(made)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=TEXT).logits
    return found


def with_lora(model: Any) -> Any:
    wrap_small(model)
    add_lora(model, decoder_linears(model), rank=2, alpha=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.2)
    return model


def louder(model: Any) -> None:
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B.default" in name:
                weights.normal_(std=0.2)


# --- settings -------------------------------------------------------------------------------------


def test_any_field_by_keyword(model: Any) -> None:
    fitting = host_of(model).config(model)
    config = bvllm.wrap(
        model, max_tokens=7, num_frames=3, tokens_per_frame=2, qformer_layers=1
    ).balanced_tokenizer.config
    assert (config.max_tokens, config.num_frames, config.tokens_per_frame) == (7, 3, 2)
    assert (config.vision_width, config.llm_width) == (fitting.vision_width, fitting.llm_width)
    assert config.qformer_width == fitting.qformer_width


def test_settings_that_cannot_be(model: Any, tmp_path: Path) -> None:
    for settings, error, message in (
        ({"num_frame": 3}, TypeError, r"wrap: got \['num_frame'\], wanted arguments of wrap, or"),
        ({"num_frames": 0}, ValueError, "num_frames: got 0"),
        ({"revision": "main"}, ValueError, "revision: got 'main' without adapter"),
        ({"adapter": tmp_path, "num_frames": 3}, ValueError, "num_frames: got it beside adapter"),
    ):
        with pytest.raises(error, match=message):
            bvllm.wrap(model, **settings)  # type: ignore[arg-type]
        assert not hasattr(model, "_bvllm_host")


def test_a_native_model_without_a_budget_keeps_its_own(tmp_path: Path) -> None:
    model = native(tmp_path)[0]
    before = model.balanced_tokenizer
    assert bvllm.wrap(model).balanced_tokenizer.config == before.config
    bvllm.unwrap(model)
    assert model.balanced_tokenizer is before


# --- modes, dtypes, classes -----------------------------------------------------------------------


def test_unwrapping_gives_back_the_mode_that_the_model_is_in(tmp_path: Path) -> None:
    model = bvllm.wrap(native(tmp_path)[0].train(), max_tokens=8)
    model.eval()
    assert not any(module.training for module in bvllm.unwrap(model).modules())
    bvllm.wrap(model, max_tokens=8).train()
    assert bvllm.unwrap(model).balanced_tokenizer.training


def test_unwrapping_rounds_nothing(tmp_path: Path) -> None:
    model = native(tmp_path)[0].to(torch.bfloat16)
    before = {k: v.clone() for k, v in model.balanced_tokenizer.float().state_dict().items()}
    bvllm.unwrap(bvllm.wrap(model, max_tokens=8))
    for name, value in model.balanced_tokenizer.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])


def test_what_is_put_back_follows_a_model_that_became_another_dtype(tmp_path: Path) -> None:
    model = bvllm.wrap(native(tmp_path)[0], max_tokens=8).half()
    assert bvllm.unwrap(model).balanced_tokenizer.dtype == torch.float16


def test_a_tokenizer_in_eval_on_purpose_stays_so(model: Any, tmp_path: Path) -> None:
    wrap_small(model).train()
    model.balanced_tokenizer.eval()
    model.save_pretrained(tmp_path)
    bvllm.save_adapter(model, tmp_path / "adapter")
    assert model.training and not model.balanced_tokenizer.training
    with unwrapped(model):
        pass
    assert model.training and not model.balanced_tokenizer.training


def test_a_pickled_model_keeps_its_class(model: Any) -> None:
    twin = pickle.loads(pickle.dumps(bvllm.wrap(model, max_tokens=8)))
    assert type(twin) is type(model)


@dataclass
class Unhashable:
    """A host that has equals, and therefore no hash."""

    host: Any

    def __getattr__(self, name: str) -> Any:
        if name == "host":
            raise AttributeError(name)
        return getattr(self.host, name)


def test_a_host_need_not_be_hashable(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Unhashable(host_of(model))
    monkeypatch.setattr(wrapping, "host_of", lambda base: host)
    before = logits(model)
    bvllm.unwrap(bvllm.wrap(model, max_tokens=8))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", ["become", "load_lora"])
def test_what_is_interrupted_leaves_the_model_unwrapped(
    model: Any, made: Any, at: str, error: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bvllm.save_adapter(with_lora(copy.deepcopy(made)), tmp_path)
    before, keys = logits(model), list(model.state_dict())
    done = getattr(wrapping, at)
    came = []

    def interrupted(*arguments: Any) -> None:
        done(*arguments)
        if not came:
            came.append(at)
            raise error

    monkeypatch.setattr(wrapping, at, interrupted)
    with pytest.raises(error):
        bvllm.wrap(model, adapter=tmp_path)
    assert type(model) is type(made) and list(model.state_dict()) == keys
    assert torch.equal(logits(model), before)
    assert not [name for name in vars(model) if name.startswith("_bvllm")]


# --- two owners of a layer ------------------------------------------------------------------------


def users_lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))


def test_a_users_lora_on_top_of_an_adapters(made: Any, model: Any, tmp_path: Path) -> None:
    bvllm.save_adapter(with_lora(copy.deepcopy(made)), tmp_path)
    tuned = logits(bvllm.wrap(model, adapter=tmp_path))
    peft_model: Any = users_lora(model)
    assert torch.equal(logits(peft_model), tuned)  # a new LoRA changes nothing
    louder(peft_model)
    both = logits(peft_model)
    assert not torch.allclose(both, tuned)
    with peft_model.disable_adapter():
        assert torch.equal(logits(peft_model), tuned)
    # What peft saves is the user's own, and what we save is the adapter's.
    peft_model.save_pretrained(tmp_path / "users")
    names = load_file(tmp_path / "users" / "adapter_model.safetensors")
    assert names and not any("bvllm" in name for name in names)
    bvllm.save_adapter(peft_model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "lora" / "adapter_model.safetensors")
    for name, value in load_file(tmp_path / "lora" / "adapter_model.safetensors").items():
        assert torch.equal(value, again[name])
    # And both are there again, in either order.
    fresh: Any = PeftModel.from_pretrained(
        bvllm.wrap(copy.deepcopy(made), adapter=tmp_path / "again"), tmp_path / "users"
    )
    assert torch.equal(logits(fresh), both)
    late: Any = PeftModel.from_pretrained(copy.deepcopy(made), tmp_path / "users")
    assert torch.equal(logits(bvllm.wrap(late, adapter=tmp_path / "again")), both)


def test_unwrapping_leaves_a_users_lora(made: Any, model: Any, tmp_path: Path) -> None:
    bvllm.save_adapter(with_lora(copy.deepcopy(made)), tmp_path)
    alone: Any = users_lora(copy.deepcopy(made))
    louder(alone)
    peft_model: Any = users_lora(model)
    peft_model.load_state_dict(alone.state_dict())
    bvllm.wrap(peft_model, adapter=tmp_path)
    assert not torch.allclose(logits(peft_model), logits(alone))
    bvllm.unwrap(peft_model)
    assert torch.equal(logits(peft_model), logits(alone))
    assert list(peft_model.state_dict()) == list(alone.state_dict())
    assert list(peft_model.peft_config) == ["default"]
    merged = peft_model.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(alone), atol=1e-3, rtol=1e-3)


def test_merging_a_users_lora_keeps_the_adapters(made: Any, model: Any, tmp_path: Path) -> None:
    bvllm.save_adapter(with_lora(copy.deepcopy(made)), tmp_path)
    bvllm.wrap(model, adapter=tmp_path)
    peft_model: Any = users_lora(model)
    louder(peft_model)
    both = logits(peft_model)
    merged = peft_model.merge_and_unload()
    torch.testing.assert_close(logits(merged), both, atol=1e-3, rtol=1e-3)
    assert len(lora_layers(merged)) == 14


def test_a_lora_is_merged_for_good(made: Any, model: Any, tmp_path: Path) -> None:
    bvllm.save_adapter(with_lora(copy.deepcopy(made)), tmp_path)
    bvllm.wrap(model, adapter=tmp_path)
    tuned = logits(model)
    assert bvllm.merge_lora(model) is model
    assert not lora_layers(model)
    torch.testing.assert_close(logits(model), tuned, atol=1e-3, rtol=1e-3)
    # Into a host that has it already, the same LoRA is not put a second time.
    bvllm.unwrap(model)
    with pytest.raises(ValueError, match=r"a LoRA \(maybe its own\) has been merged into this one"):
        bvllm.wrap(model, adapter=tmp_path)
    with pytest.raises(ValueError, match="that is not wrapped, wanted one that is"):
        bvllm.merge_lora(model)


def test_packed_weights_take_no_merged_lora(model: Any) -> None:
    with_lora(model)
    linear = next(m for n, m in model.named_modules() if n.endswith("layers.1.mlp.up_proj"))
    packed = torch.zeros(4, dtype=torch.uint8)
    linear.weight = torch.nn.Parameter(packed, requires_grad=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"model: got torch.uint8 weights .* in .*up_proj"):
        bvllm.merge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_peft_in_the_tokenizer(made: Any, model: Any, tmp_path: Path) -> None:
    """`all-linear` reaches the tokenizer's layers too: refused by name. Trained whole by
    `modules_to_save`, it is what is asked and saved."""
    everywhere: Any = get_peft_model(
        wrap_small(model), LoraConfig(r=2, target_modules="all-linear")
    )
    with pytest.raises(ValueError, match=r"balanced_tokenizer: got .*base_layer.*not its own"):
        bvllm.save_adapter(everywhere, tmp_path / "none")
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())
    other = wrap_small(copy.deepcopy(made))
    whole: Any = get_peft_model(
        other, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["balanced_tokenizer"])
    )
    trained = other.balanced_tokenizer.modules_to_save["default"]
    with torch.no_grad():
        trained.spatial_sampler.queries.add_(1)
    bvllm.save_adapter(whole, tmp_path)
    fresh = bvllm.wrap(copy.deepcopy(made), adapter=tmp_path)
    queries = fresh.balanced_tokenizer.spatial_sampler.queries
    assert torch.equal(queries, trained.spatial_sampler.queries)


def test_a_host_with_a_users_lora_in_it_is_not_saved_as_if_it_had_none(
    model: Any, tmp_path: Path
) -> None:
    peft_model: Any = users_lora(wrap_small(model))
    with pytest.raises(ValueError, match=r"model: got peft's layers in it \(.*\), wanted them"):
        peft_model.get_base_model().save_pretrained(tmp_path)
