"""LoRA layers of an adapter: put in, taken out, saved and found again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bvllm_adapters as bvllm
from bvllm_adapters.training.stages import decoder_linears
from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_adapters.weights.lora_layers import add_lora, lora_layers, put_back, take_out

TEXT = torch.arange(5, 15)[None]
pytestmark = pytest.mark.filterwarnings(
    # transformers 5.23 renames what peft 0.21 asks for.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def made() -> Any:
    from bvllm_videollama2.tiny import tiny_model

    return tiny_model()


@pytest.fixture
def host(made: Any) -> Any:
    return copy.deepcopy(made)


def tuned(model: Any) -> Any:
    """Wrapped, with a LoRA that does something."""
    bvllm.wrap(model, max_tokens=8)
    add_lora(model, decoder_linears(model), rank=2, alpha=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.3)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TEXT).logits
    return found


def test_a_new_lora_changes_no_output(host: Any) -> None:
    before, trainable = logits(host), {n for n, p in host.named_parameters() if p.requires_grad}
    add_lora(host, ["model.layers.0.self_attn.q_proj"], rank=2, alpha=4)
    assert list(lora_layers(host)) == ["model.layers.0.self_attn.q_proj"]
    assert torch.equal(logits(host), before)
    now = {n for n, p in host.named_parameters() if p.requires_grad}
    assert {name for name in now if ".bvllm_lora." not in name} == trainable
    assert len(now) == len(trainable) + 2
    with pytest.raises(ValueError, match="got one with a LoRA of an adapter"):
        add_lora(host, ["model.layers.1.self_attn.q_proj"], rank=2, alpha=4)


def test_all_linear_layers_of_the_decoder(host: Any) -> None:
    kinds = "q_proj k_proj v_proj o_proj".split()
    mlp = "gate_proj up_proj down_proj".split()
    wanted = {f"model.layers.{i}.self_attn.{kind}" for i in range(2) for kind in kinds}
    wanted |= {f"model.layers.{i}.mlp.{kind}" for i in range(2) for kind in mlp}
    assert set(decoder_linears(host)) == wanted
    some = decoder_linears(host, ("q_proj", "mlp.up_proj"))
    assert len(some) == 4
    with pytest.raises(ValueError, match=r"lora\.targets: got 'proj', wanted some of \['down"):
        decoder_linears(host, ("proj",))


def test_taken_out_and_put_back(host: Any) -> None:
    before, keys = logits(host), list(host.state_dict())
    model = tuned(host)
    with_lora = logits(model)
    assert not torch.allclose(with_lora, before)
    lora = lora_layers(model)
    take_out(model)
    assert torch.equal(logits(model), before)
    assert not lora_layers(model)
    put_back(model, lora)
    assert torch.equal(logits(model), with_lora)
    bvllm.unwrap(model)
    assert torch.equal(logits(model), before)
    assert list(model.state_dict()) == keys
    assert not hasattr(model, "peft_config")


def test_an_adapter_brings_its_lora(host: Any, made: Any, tmp_path: Path) -> None:
    model = tuned(host)
    bvllm.save_adapter(model, tmp_path)
    fresh = copy.deepcopy(made)
    bvllm.wrap(fresh, adapter=tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    # Saved from there, it is the same again; and so is a host saved with its adapter.
    bvllm.save_adapter(fresh, tmp_path / "again")
    first, again = tmp_path / "lora", tmp_path / "again" / "lora"
    settings = "adapter_config.json"
    assert (first / settings).read_bytes() == (again / settings).read_bytes()
    weights, same = (load_file(each / "adapter_model.safetensors") for each in (first, again))
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    fresh.save_pretrained(tmp_path / "host")
    assert torch.equal(logits(fresh), logits(model))
    assert torch.equal(logits(bvllm.load(tmp_path / "host")), logits(model))


def test_peft_reads_it_too(host: Any, made: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    model = tuned(host)
    bvllm.save_adapter(model, tmp_path)
    peft_model: Any = PeftModel.from_pretrained(copy.deepcopy(made), tmp_path / "lora")
    assert torch.equal(logits(peft_model), logits(model))


def test_an_adapter_written_without_lora_has_none(host: Any, made: Any, tmp_path: Path) -> None:
    bvllm.save_adapter(tuned(host), tmp_path)
    bvllm.save_adapter(bvllm.wrap(copy.deepcopy(made), max_tokens=8), tmp_path)
    fresh = bvllm.wrap(copy.deepcopy(made), adapter=tmp_path)
    assert not lora_layers(fresh)


def test_a_lora_of_another_save(host: Any, made: Any, tmp_path: Path) -> None:
    """As an interrupted copy leaves it: beside the tokenizer of one save the LoRA of another."""
    model = tuned(host)
    for name in ("one", "other"):
        bvllm.save_adapter(model, tmp_path / name)
    file = Path("lora") / "adapter_model.safetensors"
    (tmp_path / "one" / file).write_bytes((tmp_path / "other" / file).read_bytes())
    with pytest.raises(CheckpointError, match="the two were not saved together"):
        bvllm.wrap(copy.deepcopy(made), adapter=tmp_path / "one")


@pytest.mark.parametrize("fault", ["missing", "misshapen", "foreign", "gone"])
def test_a_lora_that_does_not_fit(fault: str, host: Any, made: Any, tmp_path: Path) -> None:
    bvllm.save_adapter(tuned(host), tmp_path)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    if fault == "missing":
        del weights[name]
    elif fault == "misshapen":
        weights[name] = weights[name][:1].contiguous()
    else:
        weights[name.replace("layers.0", "layers.7")] = weights.pop(name)
    save_file(weights, file)
    if fault == "gone":
        file.unlink()
    fresh = copy.deepcopy(made)
    before = logits(fresh)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        bvllm.wrap(fresh, adapter=tmp_path)
    assert not lora_layers(fresh)
    assert type(fresh) is type(made)
    assert torch.equal(logits(fresh), before)
