"""Loading: each published layout, every key accounted for, each weight touched once."""

from __future__ import annotations

import copy
import json
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bvllm_adapters.weights.hub as hub
import bvllm_llama_vid.sources as sources
import bvllm_llama_vid.weights as weights
from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_llama_vid import HOST, LlavaConfig, LlavaLlamaAttForCausalLM
from bvllm_llama_vid.tiny import tiny_config

DATA = Path(__file__).parents[1] / "data" / "llama_vid" / "eva_mean"
TOWER = "model.vision_tower.vision_tower."
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def published() -> State:
    return load_file(DATA / "model.safetensors")


@pytest.fixture(scope="module")
def whole() -> State:
    return HOST.load(DATA, dtype=torch.float32).state_dict()


def folder_with(folder: Path, **config: Any) -> Path:
    """A copy of the checkpoint without its weights."""
    folder.mkdir(exist_ok=True)
    for name in ("bert_vocab.txt", "config.json"):
        shutil.copy(DATA / name, folder)
    written = json.loads((DATA / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def same(model: nn.Module, wanted: State) -> bool:
    got = model.state_dict()
    return set(got) == set(wanted) and all(torch.equal(got[key], wanted[key]) for key in got)


def halves(state: State) -> list[State]:
    keys = list(state)
    middle = len(keys) // 2
    return [{key: state[key] for key in part} for part in (keys[:middle], keys[middle:])]


def write_bin(state: State, folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def write_sharded_bin(state: State, folder: Path) -> None:
    for i, part in enumerate(halves(state), start=1):
        torch.save(part, folder / f"pytorch_model-0000{i}-of-00002.bin")


def write_indexed_bin(state: State, folder: Path) -> None:
    names = {}
    for i, part in enumerate(halves(state)):
        torch.save(part, folder / f"part{i}.bin")
        names |= dict.fromkeys(part, f"part{i}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


def write_sharded_safetensors(state: State, folder: Path) -> None:
    for i, part in enumerate(halves(state), start=1):
        save_file(part, folder / f"model-0000{i}-of-00002.safetensors")


@pytest.mark.parametrize(
    "write", [write_bin, write_sharded_bin, write_indexed_bin, write_sharded_safetensors]
)
def test_layouts(
    tmp_path: Path, published: State, whole: State, write: Callable[[State, Path], None]
) -> None:
    write(published, folder_with(tmp_path))
    assert same(HOST.load(tmp_path, dtype=torch.float32), whole)


def test_what_is_saved_is_what_was_loaded(tmp_path: Path, whole: State) -> None:
    model: Any = HOST.load(DATA, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["LlavaLlamaAttForCausalLM"]
    assert set(load_file(tmp_path / "model.safetensors")) == set(whole)
    assert same(HOST.load(tmp_path, dtype=torch.float32), whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"bert_type": "raw"},
        {"bert_type": "qformer_layer:1"},
        {"bert_type": "qformer_pretrain_freeze_all"},
        {"mm_projector_type": "linear"},
        {"encoder_width": 56},  # so that vlm_att_bert_proj is there
        {"mm_vision_tower": "laion/clip", "mm_vision_config": {"num_attention_heads": 4}},
    ],
)
def test_variants_come_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    config, changes = tiny_config(vocab_size=64), dict(changes)
    width = changes.pop("encoder_width", 48)
    config.mm_qformer_config = config.mm_qformer_config | {"encoder_width": width}
    config.mm_vision_config = config.mm_vision_config | changes.pop("mm_vision_config", {})
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = LlavaLlamaAttForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    # Only what no shape tells has to be said.
    written = json.loads((tmp_path / "config.json").read_text())
    for key in ("mm_vision_config", "mm_qformer_config"):
        written[key] = {"num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(written))
    loaded: Any = HOST.load(tmp_path, dtype=torch.float32)
    assert same(loaded, model.state_dict())
    frames = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        got, wanted = (m.encode_images(frames, [["Who?"]], [2])[0] for m in (loaded, model))
    assert torch.equal(got, wanted)


def write_tower(state: State, file: Path, wrap: Callable[[State], Any] = lambda s: s) -> State:
    """The tower into a file as published, with its leftovers; returns the rest."""
    inner = {k.removeprefix(TOWER): v.float() for k, v in state.items() if k.startswith(TOWER)}
    leftovers = {"head.weight": torch.zeros(2, 48), "norm.bias": torch.zeros(48)}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(wrap(inner | leftovers), file)
    return {key: value for key, value in state.items() if not key.startswith(TOWER)}


def test_tower_beside_the_checkpoint(tmp_path: Path, published: State, whole: State) -> None:
    folder = folder_with(tmp_path)
    write_bin(write_tower(published, folder / "model_zoo/LAVIS/eva_vit_tiny.pth"), folder)
    assert same(HOST.load(folder, dtype=torch.float32), whole)


def test_tower_at_an_absolute_path_a_level_deeper(
    tmp_path: Path, published: State, whole: State
) -> None:
    file = tmp_path / "elsewhere" / "eva.pth"
    folder = folder_with(tmp_path / "checkpoint", mm_vision_tower=str(file))
    write_bin(write_tower(published, file, wrap=lambda state: {"model": state}), folder)
    assert same(HOST.load(folder, dtype=torch.float32), whole)


def test_blocks_behind_the_last_in_use_are_left_out(
    tmp_path: Path, published: State, whole: State
) -> None:
    """As the 40th of the published file; and still so after the sizes were saved."""
    folder = folder_with(tmp_path / "checkpoint", mm_vision_config={"num_heads": 4, "depth": 3})
    block = f"{TOWER}blocks.2."
    behind = {k.replace("blocks.2.", "blocks.3."): v for k, v in published.items() if block in k}
    write_bin(write_tower(published | behind, folder / "model_zoo/LAVIS/eva_vit_tiny.pth"), folder)
    model: Any = HOST.load(folder, dtype=torch.float32)
    assert same(model, whole)
    model.save_pretrained(tmp_path / "again")
    assert same(HOST.load(tmp_path / "again", dtype=torch.float32), whole)


def test_tower_in_the_old_torch_format(tmp_path: Path, published: State, whole: State) -> None:
    folder = folder_with(tmp_path)
    file = folder / "model_zoo/LAVIS/eva_vit_tiny.pth"
    rest = write_tower(published, file)
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    write_bin(rest, folder)
    assert same(HOST.load(folder, dtype=torch.float32), whole)


def test_tower_of_another_image_size_is_interpolated(tmp_path: Path, published: State) -> None:
    sizes = {"num_heads": 4, "image_size": 84}
    folder = folder_with(tmp_path, mm_vision_config=sizes)
    write_bin(published, folder)
    model: Any = HOST.load(folder, dtype=torch.float32)
    before, after = published[f"{TOWER}pos_embed"].float(), model.state_dict()[f"{TOWER}pos_embed"]
    assert after.shape == (1, 37, 48)
    assert torch.equal(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1:].mean(), before[:, 1:].mean(), atol=0.05, rtol=0)
    assert model.get_vision_tower()(torch.zeros(1, 3, 84, 84)).shape == (1, 37, 48)


def clip_checkpoint(folder: Path) -> tuple[LlavaLlamaAttForCausalLM, Path]:
    """A checkpoint without tower, and the folder of a whole CLIP."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    }
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 9}
    text["num_attention_heads"] = 2
    tower = folder / "openai-clip"
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    clip.save_pretrained(tower)
    checkpoint = folder_with(
        folder / "checkpoint",
        mm_vision_tower=str(tower),
        bert_type="qformer",
        mm_vision_config=None,
    )
    config = weights.read_config(checkpoint)
    config.mm_vision_config = vision
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "intermediate_size": 96}
    config.mm_qformer_config |= {**sizes, "vocab_size": 443}
    model = LlavaLlamaAttForCausalLM(config)
    encoder: Any = model.get_vision_tower().vision_tower
    inner = {k.removeprefix("vision_model."): v for k, v in clip.state_dict().items()}
    encoder.vision_model.load_state_dict({k: inner[k] for k in encoder.vision_model.state_dict()})
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith(TOWER)}
    save_file(rest, checkpoint / "model.safetensors")
    return model, checkpoint


def test_clip_tower_in_its_own_folder(tmp_path: Path) -> None:
    model, folder = clip_checkpoint(tmp_path)
    loaded: Any = HOST.load(folder, dtype=torch.float32)
    assert same(loaded, model.state_dict())
    assert loaded.get_vision_tower().vision_tower.vision_model.config.num_attention_heads == 4


def test_a_tower_by_hub_id_is_looked_for_in_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = clip_checkpoint(tmp_path)
    asked = []

    def cached(name: str, *, local_files_only: bool) -> str:
        asked.append((name, local_files_only))
        return str(tmp_path / "openai-clip")

    written = json.loads((folder / "config.json").read_text())
    written["mm_vision_tower"] = "openai/clip-vit-large-patch14"
    (folder / "config.json").write_text(json.dumps(written))
    monkeypatch.setattr(hub, "snapshot_download", cached)
    assert same(HOST.load(folder, dtype=torch.float32), model.state_dict())
    assert set(asked) == {("openai/clip-vit-large-patch14", True)}


def test_no_tower_anywhere(tmp_path: Path, published: State) -> None:
    folder = folder_with(tmp_path, mm_vision_tower="openai/clip-that-is-nowhere")
    write_bin({k: v for k, v in published.items() if not k.startswith(TOWER)}, folder)
    with pytest.raises(CheckpointError, match=r"no vision tower, and mm_vision_tower='openai/clip"):
        HOST.load(folder, dtype=torch.float32)


def is_trained_in_stage_1(key: str) -> bool:
    return "mm_projector" in key or "vlm_att" in key


@pytest.fixture
def stage_1(tmp_path: Path, published: State) -> tuple[Path, Path]:
    """A projector-only folder, its tower in a file, and the Llama that it is for."""
    base, folder = tmp_path / "vicuna", folder_with(tmp_path / "stage-1")
    rest = write_tower(published, folder / "model_zoo/LAVIS/eva_vit_tiny.pth")
    named = {k: v for k, v in rest.items() if is_trained_in_stage_1(k) and "position_ids" not in k}
    torch.save(named, folder / "mm_projector.bin")
    base.mkdir()
    (base / "config.json").write_text("{}")
    write_bin({k: v for k, v in rest.items() if not is_trained_in_stage_1(k)}, base)
    return folder, base


def test_projector_on_a_base(stage_1: tuple[Path, Path], whole: State) -> None:
    folder, base = stage_1
    assert same(HOST.load(folder, dtype=torch.float32, base=base), whole)


def test_projector_that_names_its_base(stage_1: tuple[Path, Path], whole: State) -> None:
    folder, base = stage_1
    folder_with(folder, _name_or_path=str(base))
    assert same(HOST.load(folder, dtype=torch.float32), whole)


def test_projector_without_base(stage_1: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"base: got None, and .* does not name it"):
        HOST.load(stage_1[0], dtype=torch.float32)


def test_the_folders_weights_go_before_its_bases(
    stage_1: tuple[Path, Path], published: State, whole: State
) -> None:
    folder, base = stage_1
    trained = {k for k in published if is_trained_in_stage_1(k) and "position_ids" not in k}
    worse = {k: v * 2 if k in trained else v for k, v in published.items()}
    write_bin(worse, base)
    assert same(HOST.load(folder, dtype=torch.float32, base=base), whole)


@pytest.fixture
def lora(tmp_path: Path, published: State) -> Path:
    """What LoRA training leaves: pairs, the rest of what trained, and the name of its base."""
    folder, base = folder_with(tmp_path / "lora"), folder_with(tmp_path / "base")
    write_bin(published, base)
    rest = {f"base_model.model.{k}": v * 2 for k, v in published.items() if "mm_projector" in k}
    torch.save(rest, folder / "non_lora_trainables.bin")
    layer = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    generator = torch.Generator().manual_seed(0)
    pair = {
        layer.format("A"): torch.randn(4, 64, generator=generator),
        layer.format("B"): torch.randn(64, 4, generator=generator),
    }
    save_file(pair, folder / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


# peft asks transformers for a name that transformers is about to change.
PEFT_ASKS = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_lora_is_merged(lora: Path, whole: State) -> None:
    pair = load_file(lora / "adapter_model.safetensors")
    a, b = (pair[key] for key in sorted(pair))
    got = HOST.load(lora, dtype=torch.float32).state_dict()
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(got[name], whole[name] + 2 * b @ a)
    assert torch.equal(got["model.mm_projector.0.bias"], 2 * whole["model.mm_projector.0.bias"])
    changed = {key for key in got if not torch.equal(got[key], whole[key])}
    assert changed == {name, *(key for key in whole if "mm_projector" in key)}


@pytest.mark.filterwarnings(PEFT_ASKS)
@pytest.mark.parametrize(
    ("about", "pair", "message"),
    [
        ({"use_dora": True}, {}, r"missing: .*q_proj\.lora_magnitude"),
        ({}, {"base_model.model.model.other.lora_A.weight": (4, 64)}, r"unexpected: .*other"),
        ({"r": 2}, {}, r"of another shape: .*q_proj\.lora_A.* \(4, 64\), wanted \(2, 64\)"),
        (
            {},
            {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 64)},
            r"missing: .*layers\.0\.self_attn\.q_proj\.lora_B",
        ),
    ],
)
def test_lora_that_does_not_fit(
    lora: Path, about: dict[str, Any], pair: dict[str, tuple[int, ...]], message: str
) -> None:
    file = lora / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | about))
    tensors = load_file(lora / "adapter_model.safetensors")
    save_file(
        tensors | {key: torch.zeros(shape) for key, shape in pair.items()},
        lora / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=message):
        HOST.load(lora, dtype=torch.float32)


def test_lora_without_its_file(lora: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json, but none of .*adapter_model"):
        HOST.load(lora, dtype=torch.float32)


RENAMED = [
    "model.vlm_att_query",
    "model.vlm_att_encoder.bert.encoder.layer.3.output.dense.weight",
    "model.vlm_att_encoder.bert.embeddings.word_embeddings.weight",
    f"{TOWER}blocks.1.attn.q_bias",
    f"{TOWER}cls_token",
    "model.layers.0.mlp.gate_proj.weight",
    "lm_head.weight",
    "model.vlm_att_encoder.bert.embeddings.position_embeddings.weight",
    "model.vlm_att_encoder.bert.encoder.layer.2.crossattention.self.query.weight",
    f"{TOWER}patch_embed.proj.weight",
    f"{TOWER}pos_embed",
]


@pytest.mark.parametrize("key", RENAMED)
def test_one_key_renamed(tmp_path: Path, published: State, key: str) -> None:
    state = {name.replace(key, f"{key}_"): value for name, value in published.items()}
    save_file(state, folder_with(tmp_path) / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        HOST.load(tmp_path, dtype=torch.float32)
    assert key in str(refused.value) and f"{key}_" in str(refused.value)


@pytest.mark.parametrize("key", RENAMED)
def test_one_key_missing(tmp_path: Path, published: State, key: str) -> None:
    state = {name: value for name, value in published.items() if name != key}
    save_file(state, folder_with(tmp_path) / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"missing: .*{key}"):
        HOST.load(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("key", RENAMED)
def test_one_shape_changed(tmp_path: Path, published: State, key: str, axis: int) -> None:
    value = published[key]
    state = published | {key: torch.cat([value, value], dim=axis)}
    save_file(state, folder_with(tmp_path) / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        HOST.load(tmp_path, dtype=torch.float32)
    assert f"of another shape: {key} {tuple(state[key].shape)}" in str(refused.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_one_file_truncated(tmp_path: Path, published: State, name: str) -> None:
    file = folder_with(tmp_path) / name
    if file.suffix == ".bin":
        torch.save(published, file)
    else:
        save_file(published, file)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read"):
        HOST.load(tmp_path, dtype=torch.float32)


def test_tower_file_truncated_or_foreign(tmp_path: Path, published: State) -> None:
    folder = folder_with(tmp_path)
    file = folder / "model_zoo/LAVIS/eva_vit_tiny.pth"
    write_bin(write_tower(published, file), folder)
    data = file.read_bytes()
    file.write_bytes(data[:-1000])
    with pytest.raises(CheckpointError, match=r"eva_vit_tiny.pth: cannot be read"):
        HOST.load(folder, dtype=torch.float32)
    torch.save([1], file)
    with pytest.raises(CheckpointError, match=r"eva_vit_tiny.pth: holds a list"):
        HOST.load(folder, dtype=torch.float32)
    torch.save({"other": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"got 0 keys '...patch_embed.proj.weight'"):
        HOST.load(folder, dtype=torch.float32)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model.norm.weight": Trap()}, folder_with(tmp_path) / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: cannot be read"):
        HOST.load(tmp_path, dtype=torch.float32)
    assert not (tmp_path / "ran").exists()


def test_more_words_than_the_vocabulary_has(tmp_path: Path, published: State) -> None:
    key = "model.vlm_att_encoder.bert.embeddings.word_embeddings.weight"
    state = published | {key: torch.zeros(500, 48)}
    save_file(state, folder_with(tmp_path) / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{key} \(500, 48\), wanted \(443, 48\)"):
        HOST.load(tmp_path, dtype=torch.float32)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights"):
        HOST.load(folder_with(tmp_path), dtype=torch.float32)


def test_each_weight_is_touched_once_and_never_held_twice(
    monkeypatch: pytest.MonkeyPatch, whole: State
) -> None:
    """Sources of another dtype are gone by the time the next is read; the model begins on meta."""
    reading: list[str] = []
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    read_tensors, load_strictly = sources.read_tensors, weights.load_strictly

    def counted(files: Any) -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for key, tensor in read_tensors(files):
            if tensor.dtype == torch.float16:
                alive.append(weakref.ref(tensor))
            reading.append(key)
            pair = (key, tensor)
            del tensor
            yield pair
            del pair
            most = max(most, sum(ref() is not None for ref in alive))

    def checked(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        assert {p.device.type for p in model.parameters()} == {"meta"}
        return load_strictly(model, *args, **kwargs)

    monkeypatch.setattr(sources, "read_tensors", counted)
    monkeypatch.setattr(weights, "load_strictly", checked)
    model = HOST.load(DATA, dtype=torch.float32)
    assert same(model, whole)
    assert len(reading) == len(set(reading)) and set(whole) <= set(reading)
    assert most <= 2  # the one being read, and the one before it in the loops' variables


def test_tables_that_are_computed_stay_in_float32() -> None:
    model: Any = HOST.load(DATA, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.get_model().rotary_emb.inv_freq.dtype == torch.float32
    with torch.no_grad():
        frames = torch.randn(2, 3, 56, 56)
        out = model(
            input_ids=torch.tensor([[1, -200, 7]]), images=[frames], prompts=[["What is it?"]]
        )
    assert out.logits.dtype == torch.bfloat16 and out.logits.isfinite().all()


def test_embeddings_follow_the_tokenizer(tmp_path: Path, published: State) -> None:
    """As upstream's loader does: patch and start tokens are added to the tokenizer."""
    changes = {"mm_use_im_patch_token": True, "mm_use_im_start_end": True}
    folder = folder_with(tmp_path, **changes)
    write_bin(published, folder)
    shutil.copy(DATA / "llm_tokenizer" / "tokenizer.model", folder)
    model: Any = HOST.load(folder, dtype=torch.float32)
    words = model.get_input_embeddings().weight
    assert words.shape == model.lm_head.weight.shape == (515, 64)
    assert model.config.vocab_size == 515
    old = published["model.embed_tokens.weight"].float()
    assert torch.equal(words[:512], old)
    torch.testing.assert_close(words[512:], old.mean(dim=0).expand(3, -1))
    tokenizer = HOST.processor(folder).tokenizer
    assert tokenizer("<im_start><image><im_end>").tolist()[1:] == [513, -200, 514]


def test_generation_settings_of_published_folders_can_be_saved_again(
    tmp_path: Path, published: State
) -> None:
    write_bin(published, folder_with(tmp_path))
    settings = {"temperature": 0.9, "top_p": 0.6, "max_length": 4096, "eos_token_id": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model: Any = HOST.load(tmp_path, dtype=torch.float32)
    assert model.generation_config.max_length == 4096
    model.save_pretrained(tmp_path / "again")


def test_long_video_checkpoints_scale_their_rotary_table(tmp_path: Path, published: State) -> None:
    scaled = {"rope_scaling": {"type": "linear", "factor": 16.0}, "max_position_embeddings": 65536}
    write_bin(published, folder_with(tmp_path, **scaled))
    model: Any = HOST.load(tmp_path, dtype=torch.float32)
    plain: Any = HOST.load(DATA, dtype=torch.float32)
    torch.testing.assert_close(
        model.get_model().rotary_emb.inv_freq * 16, plain.get_model().rotary_emb.inv_freq
    )


def test_transformers_own_llava_is_left_alone() -> None:
    theirs = type(transformers.AutoConfig.for_model("llava"))
    assert theirs is transformers.LlavaConfig and theirs is not LlavaConfig


SIZES = {
    # LLM, hidden_size, intermediate_size, layers, heads
    "llama-vid-7b": (4096, 11008, 32, 32),
    "llama-vid-13b": (5120, 13824, 40, 40),
}
PARAMETERS = {
    "llama-vid-7b": (6_738_415_616, 985_894_528, 22_552_576, 194_525_440),
    "llama-vid-13b": (13_015_864_320, 985_894_528, 33_433_600, 195_968_256),
}


def published_config(name: str) -> LlavaConfig:
    hidden, inner, layers, heads = SIZES[name]
    config = LlavaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    for key, value in {
        "mm_vision_tower": "./model_zoo/LAVIS/eva_vit_g.pth",
        "mm_hidden_size": 1408,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "bert_type": "qformer_pretrain",
        "num_query": 32,
        "compress_type": "mean",
    }.items():
        setattr(config, key, value)
    return config


@pytest.mark.parametrize("name", list(SIZES))
def test_published_sizes(name: str, published: State) -> None:
    with init_empty_weights(include_buffers=False):
        model = LlavaLlamaAttForCausalLM(published_config(name))
    inner = model.get_model()

    def count(parameters: Any) -> int:
        return sum(p.numel() for p in parameters)

    attention = [p for n, p in inner.named_parameters() if n.startswith("vlm_att_")]
    tower, projector = inner.vision_tower.parameters(), inner.mm_projector.parameters()
    parts = (count(tower), count(projector), count(attention))
    assert (count(model.parameters()) - sum(parts), *parts) == PARAMETERS[name]

    # The recorded model's keys, continued to as many layers.
    kinds = {pattern_of(key) for key in published if "inv_freq" not in key}
    assert {pattern_of(key) for key in model.state_dict()} == kinds
    *_, layers, _ = SIZES[name]
    for prefix, keys_of_layers in {
        "model.layers": [9] * layers,
        f"{TOWER}blocks": [13] * 39,
        "model.vlm_att_encoder.bert.encoder.layer": [32, 22] * 6,  # every other layer reads frames
    }.items():
        keys = [k.removeprefix(f"{prefix}.") for k in model.state_dict() if k.startswith(prefix)]
        found = Counter(int(key.split(".")[0]) for key in keys)
        assert [found[i] for i in range(len(found))] == keys_of_layers
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes[f"{TOWER}pos_embed"] == (1, 257, 1408)
    assert shapes[f"{TOWER}blocks.38.mlp.fc1.weight"] == (6144, 1408)
    assert shapes["model.vlm_att_query"] == (1, 32, 768)
    assert shapes["model.vlm_att_encoder.bert.embeddings.word_embeddings.weight"] == (30523, 768)
    assert not any("bert_proj" in key for key in shapes)


def pattern_of(key: str) -> str:
    return ".".join(
        "N" if part.isdigit() and "mm_projector" not in key else part for part in key.split(".")
    )


def test_a_copy_of_a_config_is_no_other(whole: State) -> None:
    """Sizes read from weights are written into the loaded config only, not into the class."""
    config = copy.deepcopy(HOST.load(DATA, dtype=torch.float32).config)
    assert config.mm_vision_config["num_hidden_layers"] == 3
    assert not hasattr(LlavaConfig(), "mm_vision_config")
