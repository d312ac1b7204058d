"""Published layouts, and checkpoints that do not fit."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_videollama2 import HOST, weights
from bvllm_videollama2.tiny import TOWERS, tiny_model

# peft 0.21 asks for an attribute that transformers 5.23 has given another name.
PEFT_ASKS = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
LLM_CONFIG = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def load(folder: Path, **options: Any) -> Any:
    return HOST.load(folder, **({"dtype": torch.float32} | options))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("Qwen2").save_pretrained(folder)
    return folder


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    shutil.copytree(published, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def tensors(folder: Path) -> dict[str, Tensor]:
    # Copies: what is loaded may lie in the file itself, which is written anew below.
    state = load_file(folder / "model.safetensors")
    return {name: tensor.clone() for name, tensor in state.items()}


def same(model: Any, state: dict[str, Tensor]) -> bool:
    found = model.state_dict()
    return set(found) == set(state) and all(torch.equal(found[k], v) for k, v in state.items())


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def write_tower(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    """A whole CLIP, of which a tower is the vision half."""
    folder.mkdir(parents=True)
    tower = {k.removeprefix(TOWER): v for k, v in state.items() if k.startswith(TOWER)}
    others = {
        "text_model.final_layer_norm.weight": torch.zeros(4),
        "logit_scale": torch.zeros(()),
        "visual_projection.weight": torch.zeros(4, 4),
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    torch.save(tower | others, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config}))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("layout", ["single", "shards", "index"])
def test_layouts(copy: Path, layout: str, suffix: str) -> None:
    state = tensors(copy)
    (copy / "model.safetensors").unlink()
    save = save_file if suffix == ".safetensors" else torch.save
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}{suffix}"]
    if layout != "single":
        names = [f"{stem}-0000{n}-of-00003{suffix}" for n in (1, 2, 3)]
    where = {key: names[i % len(names)] for i, key in enumerate(state)}
    for name in names:
        save({key: state[key] for key in state if where[key] == name}, copy / name)
    if layout == "index":
        (copy / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    assert same(load(copy), state)


def test_each_weight_is_touched_once_and_never_held_twice(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    read: list[str] = []
    most = 0

    def watched(named: Any) -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for key, tensor in named:
            read.append(key)
            alive.append(weakref.ref(tensor))
            yield key, tensor
            del tensor
            most = max(most, sum(ref() is not None for ref in alive))

    original = weights.read_tensors
    monkeypatch.setattr(weights, "read_tensors", lambda files: watched(original(files)))
    model = load(published, dtype=torch.bfloat16)  # a cast is where a second copy would come from
    assert sorted(read) == sorted(model.state_dict())
    assert most <= 2  # the one just read, and the one before it in a loop variable
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16


def test_nothing_is_left_on_the_meta_device_and_rotary_frequencies_are_right(
    published: Path,
) -> None:
    model, made = load(published), tiny_model("Qwen2")
    buffers = dict(made.named_buffers())
    assert buffers and set(buffers) == {name for name, _ in model.named_buffers()}
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    assert not any(p.requires_grad for p in model.get_vision_tower().parameters())
    assert all(p.requires_grad for p in model.get_model().mm_projector.parameters())


@pytest.mark.parametrize("where", ["relative", "absolute"])
def test_a_tower_beside_the_checkpoint(copy: Path, where: str) -> None:
    state = tensors(copy)
    config = json.loads((copy / "config.json").read_text())["mm_vision_config"]
    write_tower(copy.parent / "towers" / "openai-clip", state, config)
    name = (
        "../towers/openai-clip" if where == "relative" else str(copy.parent / "towers/openai-clip")
    )
    edit_config(copy, mm_vision_tower=name, mm_vision_config=None)
    save_file(
        {k: v for k, v in state.items() if not k.startswith(TOWER)}, copy / "model.safetensors"
    )
    assert same(load(copy), state)


def test_a_tower_in_the_hubs_cache(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tensors(copy)
    config = json.loads((copy / "config.json").read_text())["mm_vision_config"]
    cached = tmp_path / "cache" / "snapshots" / "0"
    write_tower(cached, state, config)

    def snapshot(name: str, *, local_files_only: bool) -> str:
        assert name == TOWERS["clip"] and local_files_only
        return str(cached)

    monkeypatch.setattr("bvllm_videollama2.configuration.snapshot_download", snapshot)
    edit_config(copy, mm_vision_config=None)
    save_file(
        {k: v for k, v in state.items() if not k.startswith(TOWER)}, copy / "model.safetensors"
    )
    assert same(load(copy), state)


def test_a_saved_copy_loads_where_the_towers_folder_is_not(copy: Path, tmp_path: Path) -> None:
    state = tensors(copy)
    config = json.loads((copy / "config.json").read_text())["mm_vision_config"]
    write_tower(copy.parent / "towers" / "openai-clip", state, config)
    edit_config(copy, mm_vision_tower="../towers/openai-clip", mm_vision_config=None)
    load(copy).save_pretrained(tmp_path / "a" / "b")
    assert same(load(tmp_path / "a" / "b"), state)


def test_leftovers_and_the_alias_of_the_first_release(tmp_path: Path) -> None:
    tiny_model("Mistral").save_pretrained(tmp_path)
    state = tensors(tmp_path)
    edit_config(tmp_path, model_type="videollama2")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(state | old, tmp_path / "model.safetensors")
    assert same(load(tmp_path), state)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    made: Any = tiny_model("Qwen2", tie_word_embeddings=True)
    made.save_pretrained(tmp_path)
    assert "lm_head.weight" not in tensors(tmp_path)
    model = load(tmp_path)
    assert model.lm_head.weight is model.get_model().embed_tokens.weight
    assert same(model, dict(made.state_dict()))


@pytest.mark.parametrize("family", ["Mistral", "Mixtral", "Llama"])
def test_families_are_written_and_read_under_published_names(family: str, tmp_path: Path) -> None:
    made: Any = tiny_model(family, "siglip", "linear")
    made.save_pretrained(tmp_path)
    keys = set(tensors(tmp_path))
    assert all(
        f"{TOWER}vision_model.{name}" in keys for name in ("head.probe", "post_layernorm.bias")
    )
    if family == "Mixtral":
        assert "model.layers.1.block_sparse_moe.experts.7.w3.weight" in keys
        assert "model.layers.1.block_sparse_moe.gate.weight" in keys
    else:
        assert keys == set(made.state_dict())
    assert same(load(tmp_path), dict(made.state_dict()))
    again = type(made).from_pretrained(tmp_path)
    assert same(again, dict(made.state_dict()))


def lora_of(base: Path, folder: Path) -> dict[str, Tensor]:
    """Write a LoRA as upstream's training does; returns the merged weights."""
    whole = tensors(base)
    shutil.copy(base / "config.json", folder)
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 2,
                "lora_alpha": 6,
                "target_modules": ["q_proj", "down_proj"],
                "task_type": "CAUSAL_LM",
                "bias": "none",
                "base_model_name_or_path": str(base),
            }
        )
    )
    draw = torch.Generator().manual_seed(0)
    lora, merged = {}, dict(whole)
    for key, weight in whole.items():
        if key.startswith("model.layers.") and ("q_proj.w" in key or "down_proj.w" in key):
            a = torch.randn(2, weight.shape[1], generator=draw)
            b = torch.randn(weight.shape[0], 2, generator=draw)
            name = f"base_model.model.{key.removesuffix('.weight')}"
            lora |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
            merged[key] = weight + 3.0 * b @ a
    torch.save(lora, folder / "adapter_model.bin")
    trained = {k: v + 1 for k, v in whole.items() if k.startswith(PROJECTOR)}
    torch.save(
        {f"base_model.model.{k}": v for k, v in trained.items()}, folder / "non_lora_trainables.bin"
    )
    return merged | trained


@pytest.mark.filterwarnings(PEFT_ASKS)
@pytest.mark.parametrize("given", [False, True])
def test_a_lora_is_merged(published: Path, tmp_path: Path, given: bool) -> None:
    merged = lora_of(published, tmp_path)
    if given:
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "somewhere/else"
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = load(tmp_path, **({"base": published} if given else {}))
    found = model.state_dict()
    assert set(found) == set(merged)
    for key, value in merged.items():
        torch.testing.assert_close(found[key], value, msg=lambda m, k=key: f"{k}: {m}")
    assert all(p.requires_grad for p in model.get_model().layers.parameters())
    assert not any(p.requires_grad for p in model.get_vision_tower().parameters())


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_a_lora_that_lacks_a_key_is_refused(published: Path, tmp_path: Path) -> None:
    lora_of(published, tmp_path)
    lora = torch.load(tmp_path / "adapter_model.bin", weights_only=True)
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    lora["strange"] = lora.pop(key)
    torch.save(lora, tmp_path / "adapter_model.bin")
    with pytest.raises(
        CheckpointError, match=rf"adapter_model.bin: .* missing: {key}; 1 unexpected: strange"
    ):
        load(tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json, but none of .*adapter_model"):
        load(tmp_path)


def test_a_projector_alone_on_a_language_model(published: Path, tmp_path: Path) -> None:
    state = tensors(published)
    config = json.loads((published / "config.json").read_text())["mm_vision_config"]
    base, folder = tmp_path / "llm", tmp_path / "stage1"
    base.mkdir(), folder.mkdir()
    (base / "config.json").write_text(json.dumps(LLM_CONFIG))
    llm = {k: v for k, v in state.items() if not k.startswith((TOWER, PROJECTOR))}
    save_file(llm, base / "model.safetensors")
    write_tower(tmp_path / "openai-clip", state, config)
    shutil.copy(published / "config.json", folder)
    edit_config(folder, mm_vision_tower="../openai-clip", tune_mm_mlp_adapter=True)
    projector = {k: v for k, v in state.items() if k.startswith(PROJECTOR)}
    torch.save(projector, folder / "mm_projector.bin")
    assert same(load(folder, base=base), state)
    with pytest.raises(ValueError, match=r"base: got None, and .*stage1 does not say"):
        load(folder)
    edit_config(folder, _name_or_path=str(base))
    assert same(load(folder), state)


def test_a_whole_checkpoint_takes_no_base(published: Path) -> None:
    with pytest.raises(ValueError, match=r"base: got /x, wanted None, as .* holds a whole model"):
        load(published, base="/x")


def test_a_renamed_key_is_named(copy: Path) -> None:
    state = tensors(copy)
    state["model.layers.0.mlp.gate_prj.weight"] = state.pop("model.layers.0.mlp.gate_proj.weight")
    save_file(state, copy / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"1 missing: model\.layers\.0\.mlp\.gate_proj\.weight; "
        r"1 unexpected: model\.layers\.0\.mlp\.gate_prj\.weight",
    ):
        load(copy)


def test_a_changed_shape_is_named(copy: Path) -> None:
    state = tensors(copy)
    key = "model.mm_projector.readout.0.weight"
    state[key] = state[key][:-1].contiguous()
    save_file(state, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{key} \(63, 64\), wanted \(64, 64\)"):
        load(copy)


def test_a_truncated_file_is_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load(copy)


def test_a_missing_or_misshapen_expert_is_named(tmp_path: Path) -> None:
    tiny_model("Mixtral", projector="linear").save_pretrained(tmp_path)
    state = tensors(tmp_path)
    key = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    expert = state.pop(key)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"missing \['{key}'\]"):
        load(tmp_path)
    save_file(state | {key: expert[1:].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.block_sparse_moe\.experts: of unequal"):
        load(tmp_path)


def test_a_tower_that_is_nowhere_is_named(copy: Path) -> None:
    state = {k: v for k, v in tensors(copy).items() if not k.startswith(TOWER)}
    save_file(state, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"missing: {TOWER}vision_model\.embeddings"):
        load(copy)
    edit_config(copy, mm_vision_tower="no/such-tower", mm_vision_config=None)
    with pytest.raises(ValueError, match="mm_vision_tower: got no/such-tower, which is no folder"):
        load(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["Other"]}, "architectures: got Other .* wanted one of"),
        (
            {"mm_vision_config": {"model_type": "dinov2"}},
            "mm_vision_tower: got a dinov2 .* wanted a clip_vision_model or siglip_vision_model",
        ),
        ({"mm_vision_select_layer": -5}, "mm_vision_select_layer: got -5, wanted -4 to 3"),
        (
            {"mm_vision_select_feature": "cls"},
            "mm_vision_select_feature: got 'cls', wanted 'patch'",
        ),
        ({"mm_projector_type": "mlp0x_gelu"}, "mm_projector_type: got 'mlp0x_gelu', wanted one of"),
        ({"mm_projector_type": "spatial_conv"}, "mm_hidden_size: got 48, wanted hidden_size=64"),
    ],
)
def test_configs_that_say_nothing_usable(copy: Path, fields: dict[str, Any], message: str) -> None:
    edit_config(copy, **fields)
    with pytest.raises(ValueError, match=message):
        load(copy)
