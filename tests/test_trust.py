"""Files that others wrote: nothing in them picks code, other files or the network, or costs time
and memory before it is checked; and loading touches nothing but the model."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hosts import TINY_HOSTS, beside_processor, wrap_small
from torch import nn

import bvllm_adapters as bvllm
from bvllm_adapters import BalancedTokenizer
from bvllm_adapters.training.stages import decoder_linears
from bvllm_adapters.weights.empty import without_weights
from bvllm_adapters.weights.json_file import CheckpointError
from bvllm_adapters.weights.lora_layers import add_lora

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module", params=TINY_HOSTS, ids=lambda host: host.__name__)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's folder, and in it an adapter with a LoRA."""
    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("saved")
    model = beside_processor(request.param, plain)
    add_lora(wrap_small(model), decoder_linears(model, ("q_proj",)), rank=2, alpha=4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Whoever wants to reach another machine is written down, and fails the test."""
    wanted: list[Any] = []

    def connect(self: Any, address: Any) -> None:
        wanted.append(address)
        raise OSError(f"no network here: {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield wanted
    assert not wanted


def edit(file: Path, **values: Any) -> None:
    """Put values into a JSON file; a dotted name is one inside of another object."""
    known = json.loads(file.read_text())
    for name, value in values.items():
        at = known
        *path, last = name.split("__")
        for key in path:
            at = at.setdefault(key, {})
        at[last] = value
    file.write_text(json.dumps(known))


def layers_in(folder: Path) -> str:
    """What the language model's layers are called in config.json."""
    fields = json.loads((folder / "config.json").read_text())
    return "text_config__num_hidden_layers" if "text_config" in fields else "num_hidden_layers"


# --- sizes ----------------------------------------------------------------------------------------


def ends_at_once(act: Any, message: str) -> None:
    """An error of our own, long before a billion of anything could have been made."""
    begin = time.thread_time()
    with pytest.raises(CheckpointError, match=message):
        act()
    assert time.thread_time() - begin < 30


@pytest.mark.parametrize("count", [10**9, 10**40, -1])
def test_layers_that_no_weights_are_there_for(folder: Path, count: int) -> None:
    edit(folder / "config.json", **{layers_in(folder): count})
    ends_at_once(lambda: bvllm.load(folder), r"config\.json: num_hidden_layers: got")


@pytest.mark.parametrize(
    "settings",
    [
        {"qformer_layers": 10**9},
        {"vocab_size": 10**9},
        {"qformer_ffn_width": 10**12},
        {"num_frames": 10**9},
        {"scout": {"image_size": 64, "width": 10**9, "architecture": "vit_tiny_patch16_224"}},
        {"scout": {"image_size": 10**6, "width": 48}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_sizes_of_an_adapter(folder: Path, settings: dict[str, Any]) -> None:
    edit(folder / "bvllm_adapter" / "balanced_tokenizer.json", **settings)
    ends_at_once(lambda: bvllm.load(folder), r"balanced_tokenizer\.json: ")


@pytest.mark.parametrize(
    "arguments",
    [{"depth": 10**9}, {"embed_dim": 10**12}, {"img_size": 10**6}, {"depth": 10**40}],
    ids=str,
)
def test_sizes_of_a_scout(tmp_path: Path, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    scout = {
        "image_size": 16, "width": 16, "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2},
    }  # fmt: skip
    config = bvllm.BalancedTokenizerConfig(
        vision_width=8, llm_width=8, qformer_width=8, qformer_layers=1, qformer_heads=2,
        scout=bvllm.ScoutConfig.from_dict(scout),
    )  # fmt: skip
    BalancedTokenizer(config).save_pretrained(tmp_path)
    assert BalancedTokenizer.from_pretrained(tmp_path).scout is not None
    edit(tmp_path / "balanced_tokenizer.json", scout__model_args=scout["model_args"] | arguments)
    ends_at_once(lambda: BalancedTokenizer.from_pretrained(tmp_path), r"balanced_tokenizer\.json: ")


def test_a_rank_of_a_lora(folder: Path) -> None:
    """It is the weights that say it, and no more than fits them."""
    lora = folder / "bvllm_adapter" / "lora"
    edit(lora / "adapter_config.json", r=10**9)
    assert bvllm.load(folder)  # the weights are of rank 2
    file = lora / "adapter_model.safetensors"
    weights = {
        name: torch.zeros(5000, 1) if "lora_A" in name else value
        for name, value in load_file(file).items()
    }
    save_file(weights, file)
    ends_at_once(lambda: bvllm.load(folder), r"adapter_model\.safetensors: got rank 5000")


# --- code, other files, the network ---------------------------------------------------------------


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["kernels-community/flash-attn", "paged|evil/repo", 3])
def test_an_attention_from_the_hub(folder: Path, key: str, value: Any) -> None:
    edit(folder / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: got .*, wanted one of"):
        bvllm.load(folder)


def test_code_that_a_config_names(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('imported')\n")
    remote = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None],
              "AutoProcessor": "evil.Processor", "AutoModel": "evil--repo.Model"}  # fmt: skip
    for file in folder.glob("*.json"):
        if file.name not in ("added_tokens.json", "tokenizer.json"):
            edit(file, auto_map=remote)
    model = bvllm.load(folder)
    assert bvllm.open_video(model, torch.zeros(2, 64, 64, 3, dtype=torch.uint8).numpy())


@pytest.mark.parametrize(
    "settings",
    [
        {"base_model_name_or_path": "nobody/nothing"},
        {"megatron_config": {"a": 1}, "megatron_core": "evil"},
        {"init_lora_weights": "pissa"},
        {"auto_mapping": {"base_model_class": "Model", "parent_library": "evil"}},
        {"revision": "evil", "loftq_config": {"a": 1}, "eva_config": {"a": 1}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_a_lora_names_is_not_looked_for(folder: Path, settings: dict[str, Any]) -> None:
    edit(folder / "bvllm_adapter" / "lora" / "adapter_config.json", **settings)
    assert bvllm.load(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "LOHA"}, {"use_dora": True}, {"use_rslora": True}, {"bias": "all"},
        {"rank_pattern": {"q_proj": 3}}, {"alpha_pattern": {"q_proj": 3}}, {"lora_alpha": None},
        {"lora_alpha": "4"}, {"lora_alpha": -4}, {"lora_dropout": 1}, {"fan_in_fan_out": True},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_a_lora_that_change_its_sums(folder: Path, settings: dict[str, Any]) -> None:
    edit(folder / "bvllm_adapter" / "lora" / "adapter_config.json", **settings)
    name = next(iter(settings))
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {name}: got"):
        bvllm.load(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": True},
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained_cfg": "evil"},
        {"pretrained_cfg_overlay": {"hf_hub_id": "evil/repo"}},
        {"cache_dir": "/tmp"},
        {"features_only": True},
        {"norm_layer": {"a": 1}},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_of_a_scout(arguments: dict[str, Any]) -> None:
    config = bvllm.ScoutConfig(
        image_size=224, width=192, architecture="vit_tiny_patch16_224", model_args=arguments
    )
    with pytest.raises(ValueError, match=r"scout\.image_size, scout\.model_args: got"):
        BalancedTokenizer(
            bvllm.BalancedTokenizerConfig(
                vision_width=8, llm_width=8, qformer_width=8, qformer_layers=1, qformer_heads=2,
                scout=config,
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "hf-hub:evil/repo"),
        ("timm", "local-dir:/tmp"),
        ("transformers", "detr"),
        ("transformers", "timm_wrapper"),
        ("transformers", "evil/repo"),
    ],
)
def test_scouts_from_elsewhere(library: Any, name: str) -> None:
    config = bvllm.ScoutConfig(image_size=32, width=8, architecture=name, library=library)
    with pytest.raises(ValueError, match=r"scout\.architecture: got"):
        BalancedTokenizer(
            bvllm.BalancedTokenizerConfig(
                vision_width=8, llm_width=8, qformer_width=8, qformer_layers=1, qformer_heads=2,
                scout=config,
            )
        )  # fmt: skip


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b", "", 7, "c:x"])
def test_an_index_names_files_beside_it(folder: Path, name: Any) -> None:
    weights = folder / "model.safetensors"
    shutil.copy(weights, folder.parent / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(weights), name)}
    weights.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: got .*, wanted names of files beside"):
        bvllm.load(folder)


@pytest.mark.parametrize("name", ["../vocab.txt", "/etc/passwd", 7])
def test_a_vocabulary_lies_in_its_folder(folder: Path, name: Any) -> None:
    fields = json.loads((folder / "config.json").read_text())
    if "text_config" in fields:
        pytest.skip("a native model has none in a file")
    (folder.parent / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n")
    edit(folder / "config.json", mm_qformer_vocab=name)
    with pytest.raises(CheckpointError, match=r"mm_qformer_vocab: got .*, wanted a file in the sa"):
        bvllm.load(folder)


# --- threads --------------------------------------------------------------------------------------


def test_loading_touches_nothing_else(published: Path) -> None:
    """Other threads make layers meanwhile; they and torch's generator are as ever."""
    seen: set[Any] = set()
    stop = threading.Event()
    state = torch.get_rng_state()

    def watch() -> None:
        while not stop.is_set():
            made = torch.empty(1)
            seen.add((made.device.type, torch.get_default_dtype(), nn.Module.__setattr__))
            seen.add((nn.Module.register_parameter, nn.Linear.reset_parameters))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            models = list(pool.map(lambda _: bvllm.load(published, dtype=torch.bfloat16), range(6)))
    finally:
        stop.set()
        thread.join()
    assert len(seen) == 2
    assert not any(weight.is_meta for model in models for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert nn.Linear(2, 2).weight.device.type == "cpu"
    first, *others = [model.state_dict() for model in models]
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


def test_a_model_without_weights_has_its_computed_buffers() -> None:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.norm = nn.LayerNorm(3)
            self.register_buffer("places", torch.arange(3), persistent=False)

    state = torch.get_rng_state()
    made = without_weights(Made)
    assert all(weight.is_meta for weight in made.parameters())
    assert made.places.tolist() == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), state)
    assert not Made().linear.weight.is_meta
