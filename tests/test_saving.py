"""Saving: whole or not at all, changing nothing, and readable again or refused by name."""

from __future__ import annotations

import copy
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from tiny_hosts import TINY_HOSTS, wrap_small
from torch import nn

import bvllm_adapters as bvllm
from bvllm_adapters import BalancedTokenizer, BalancedTokenizerConfig
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.training.stages import decoder_linears
from bvllm_adapters.weights import sampled, stamped
from bvllm_adapters.weights.json_file import CheckpointError
from bvllm_adapters.weights.lora_layers import add_lora
from bvllm_adapters.weights.whole import SAVED, finish, saved_whole

# peft asks transformers for a name that transformers is about to change.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
SMALL = {
    "num_frames": 3, "tokens_per_frame": 2, "max_tokens": 4, "vision_width": 8, "llm_width": 12,
    "qformer_width": 8, "qformer_layers": 1, "qformer_heads": 2, "vocab_size": 50,
    "vocabulary": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(46))],
}  # fmt: skip


@pytest.fixture(scope="module", params=TINY_HOSTS, ids=lambda host: host.__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return request.param(tmp_path_factory.mktemp("checkpoint"))[0]


@pytest.fixture
def model(made: Any) -> Any:
    return copy.deepcopy(made)


def tokenizer(seed: int = 0) -> BalancedTokenizer:
    torch.manual_seed(seed)
    return BalancedTokenizer(BalancedTokenizerConfig.from_dict(SMALL)).eval()


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- whole or not at all --------------------------------------------------------------------------

_WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "open")


def killed_at(step: int, save: Any) -> bool:
    """Run `save` in a process of its own that ends without a word at its step-th touch of the disk;
    whether it came so far."""
    child = os.fork()
    if child == 0:
        touched = 0

        def touch() -> None:
            nonlocal touched
            touched += 1
            if touched == step:
                os._exit(9)

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _WRITES and not (event == "open" and "r" in str(arguments[1])):
                touch()

        def write(*arguments: Any, **named: Any) -> None:
            touch()  # safetensors opens files without a word to Python
            save_file(*arguments, **named)

        sys.addaudithook(watch)
        stamped.save_file = sampled.save_file = write
        try:
            save()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes of the same memory here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_save_that_is_killed_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    old, new = tokenizer(0), tokenizer(1)
    new.config = BalancedTokenizerConfig.from_dict(SMALL | {"max_tokens": 5})
    found: list[int | None] = []
    for step in range(1, 100):
        folder = tmp_path / str(step)
        old.save_pretrained(folder)
        came_so_far = killed_at(step, lambda at=folder: new.save_pretrained(at))
        read = BalancedTokenizer.from_pretrained(folder)
        # Settings and weights of one save, never of both.
        assert equal(read, new if read.config.max_tokens == 5 else old)
        found.append(read.config.max_tokens)
        # And what is saved next is whole again, with nothing of the other left behind.
        old.save_pretrained(folder)
        assert equal(BalancedTokenizer.from_pretrained(folder), old)
        assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
        if not came_so_far:
            break
    assert set(found) == {4, 5} and len(found) > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes of the same memory here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_an_adapter_and_a_model_whose_save_is_killed(
    model: Any, tmp_path: Path, every: int
) -> None:
    wrap_small(model)
    before = copy.deepcopy(model.balanced_tokenizer)
    model.save_pretrained(tmp_path / "model")
    bvllm.save_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        for weights in model.balanced_tokenizer.parameters():
            weights.add_(1)
    for step in range(1, 200, every):
        for folder, save in (
            (tmp_path / "adapter", lambda: bvllm.save_adapter(model, tmp_path / "adapter")),
            (tmp_path / "model", lambda: model.save_pretrained(tmp_path / "model")),
        ):
            came_so_far = killed_at(step, save)
            adapter = folder if folder.name == "adapter" else folder / "bvllm_adapter"
            finish(folder)  # as load() does before it reads
            read = BalancedTokenizer.from_pretrained(adapter)
            assert equal(read, before) or equal(read, model.balanced_tokenizer)
        if not came_so_far:
            break
    assert step > 5
    assert equal(bvllm.load(tmp_path / "model").balanced_tokenizer, model.balanced_tokenizer)


def test_an_interrupt_leaves_the_old_one(tmp_path: Path) -> None:
    with saved_whole(tmp_path) as new:
        (new / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), saved_whole(tmp_path) as new:
        (new / "a.txt").write_text("new")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_what_an_interrupted_move_left_is_moved_by_the_next_reader(tmp_path: Path) -> None:
    old, new = tokenizer(0), tokenizer(1)
    old.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path / SAVED)  # as if the process had ended right after the renaming
    assert equal(BalancedTokenizer.from_pretrained(tmp_path), new)
    assert not (tmp_path / SAVED).exists()


def test_two_threads_save_into_one_folder(tmp_path: Path) -> None:
    both = [tokenizer(0), tokenizer(1)]
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda i: both[i % 2].save_pretrained(tmp_path), range(40)):
            pass
    read = BalancedTokenizer.from_pretrained(tmp_path)
    assert any(equal(read, each) for each in both)
    assert len(list(tmp_path.iterdir())) == 2


def test_shards_of_an_earlier_save_do_not_stay(tmp_path: Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    with saved_whole(tmp_path) as new:
        (new / "model.safetensors").write_text("new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "notes.txt"]


def test_settings_of_one_save_beside_weights_of_another(tmp_path: Path) -> None:
    """As an interrupted copy leaves them."""
    tokenizer(0).save_pretrained(tmp_path / "a")
    tokenizer(1).save_pretrained(tmp_path / "b")
    name = "balanced_tokenizer.json"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(CheckpointError, match="the two were not saved together"):
        BalancedTokenizer.from_pretrained(tmp_path / "a")


def test_settings_may_be_changed_by_hand(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "balanced_tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_tokens": 3}))
    assert BalancedTokenizer.from_pretrained(tmp_path).config.max_tokens == 3


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder: got .*file, which is a file"):
        tokenizer().save_pretrained(tmp_path / "file")


# --- nothing changes ------------------------------------------------------------------------------


def test_saving_does_not_unwrap_the_live_model(model: Any, tmp_path: Path) -> None:
    """Another thread would be answered by the host without its budget meanwhile."""
    wrap_small(model)
    cls, tokens, seen = type(model), model.balanced_tokenizer, set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1e-4):  # without a pause it would leave no time for saving
            seen.add((type(model), getattr(model, "balanced_tokenizer", None)))

    thread = threading.Thread(target=watch)
    thread.start()
    model.save_pretrained(tmp_path)
    stop.set()
    thread.join()
    assert seen == {(cls, tokens)}


def test_saving_rounds_nothing(model: Any, tmp_path: Path) -> None:
    """Training leaves a float32 tokenizer beside a bfloat16 host."""
    wrap_small(model.to(torch.bfloat16))
    model.balanced_tokenizer.float()
    with torch.no_grad():
        for weights in model.balanced_tokenizer.parameters():
            weights.add_(1e-4)
    before = copy.deepcopy(model.balanced_tokenizer)
    model.save_pretrained(tmp_path)
    assert equal(model.balanced_tokenizer, before)
    assert equal(BalancedTokenizer.from_pretrained(tmp_path / "bvllm_adapter"), before)


def test_a_saved_model_can_be_asked(model: Any, tmp_path: Path) -> None:
    """Its processor goes along, if it lies where the model was loaded from."""
    if not model.name_or_path:
        pytest.skip("made in memory, with no processor beside it")
    wrap_small(model)
    model.save_pretrained(tmp_path)
    video = torch.randint(0, 255, (3, 64, 64, 3), dtype=torch.uint8).numpy()
    said = [
        bvllm.ask(m, video, "What?", max_new_tokens=3).text for m in (model, bvllm.load(tmp_path))
    ]
    assert said[0] == said[1]


def test_a_trainers_checkpoint_holds_all_that_the_model_has(model: Any, tmp_path: Path) -> None:
    wrap_small(model)
    model.save_pretrained(tmp_path / "checkpoint-3")
    state = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    live = {name for name in model.state_dict() if name.startswith("balanced_tokenizer.")}
    assert live <= set(state)
    again = bvllm.load(tmp_path / "checkpoint-3")
    assert equal(again, model)


# --- readable again, or refused -------------------------------------------------------------------


def test_shared_weights_are_saved(tmp_path: Path) -> None:
    tied = tokenizer()
    words = tied.frame_selector.qformer.word_embeddings
    tied.spatial_sampler.qformer.word_embeddings = words
    tied.save_pretrained(tmp_path)
    assert equal(BalancedTokenizer.from_pretrained(tmp_path), tied)


def test_a_compiled_part_is_saved_under_its_own_names(tmp_path: Path) -> None:
    plain = tokenizer()
    compiled = copy.deepcopy(plain)
    compiled.spatial_sampler = torch.compile(compiled.spatial_sampler, backend="eager")
    compiled.save_pretrained(tmp_path)
    assert equal(BalancedTokenizer.from_pretrained(tmp_path), plain)


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    packed = tokenizer()
    layer = packed.projection[0]
    layer.weight = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"balanced_tokenizer: got Tensor of torch.uint8 in proj"):
        packed.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


class PackedLinear(nn.Linear):
    """With weights as torch's quantised layers have them: in no tensor."""

    def get_extra_state(self) -> Any:
        return {"scale": 1.0}


def test_weights_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    packed = tokenizer()
    packed.projection[0] = PackedLinear(8, 12)
    with pytest.raises(ValueError, match="balanced_tokenizer: got packed weights in projection"):
        packed.save_pretrained(tmp_path)


def test_a_parametrized_tokenizer_is_refused(tmp_path: Path) -> None:
    normed = tokenizer()
    torch.nn.utils.parametrizations.weight_norm(normed.projection[0])
    with pytest.raises(ValueError, match="which is not its own"):
        normed.save_pretrained(tmp_path)


def test_a_compiled_model_names_its_host(model: Any, tmp_path: Path) -> None:
    name = type(model).__name__
    compiled = torch.compile(wrap_small(copy.deepcopy(model)), backend="eager")
    bvllm.save_adapter(compiled, tmp_path)
    assert json.loads((tmp_path / "adapter.json").read_text())["host"] == name
    assert equal(bvllm.wrap(model, adapter=tmp_path).balanced_tokenizer, tokenizer_of_any(compiled))


def tokenizer_of_any(model: Any) -> Any:
    from bvllm_adapters.hosts.base import base_model

    return tokenizer_of(base_model(model))


def test_an_adapter_of_a_subclass_is_one_of_its_host(made: Any, tmp_path: Path) -> None:
    class Mine(type(made)):  # type: ignore[misc]
        pass

    mine = copy.deepcopy(made)
    mine.__class__ = Mine
    wrap_small(mine)
    bvllm.save_adapter(mine, tmp_path)
    assert equal(
        bvllm.wrap(copy.deepcopy(made), adapter=tmp_path).balanced_tokenizer,
        mine.balanced_tokenizer,
    )
    other = copy.deepcopy(made)
    other.__class__ = Mine
    assert bvllm.wrap(other, adapter=tmp_path) is other


def test_an_adapter_is_pushed_to_the_hub(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: dict[str, list[str]] = {}

    class Api:
        def create_repo(self, repo_id: str, **settings: Any) -> Any:
            class Address(str):
                pass

            address = Address(f"https://hub/{repo_id}")
            address.repo_id = repo_id  # type: ignore[attr-defined]
            return address

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
            pushed[repo_id] = sorted(file.name for file in Path(folder_path).iterdir())

    monkeypatch.setattr("bvllm_adapters.weights.hub.HfApi", Api)
    assert bvllm.push_adapter(wrap_small(model), "me/mine") == "https://hub/me/mine"
    assert pushed == {
        "me/mine": [
            "adapter.json", "balanced_tokenizer.json", "balanced_tokenizer.safetensors",
            "host_fingerprint.safetensors",
        ]
    }  # fmt: skip
    assert model.push_to_hub("me/whole") == "https://hub/me/whole"
    assert {"bvllm_adapter", "config.json", "model.safetensors"} <= set(pushed["me/whole"])
    with pytest.raises(ValueError, match="push_to_hub: got True, wanted"):
        model.save_pretrained(tmp_path, push_to_hub=True)


# --- an adapter knows its base --------------------------------------------------------------------


def test_an_adapter_beside_another_base_is_refused(
    made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bvllm.save_adapter(wrap_small(copy.deepcopy(made)), tmp_path)
    other = copy.deepcopy(made)
    weights = other.get_output_embeddings().weight
    with torch.no_grad():
        weights.add_(1e-3)
    with pytest.raises(ValueError, match=r"beside other weights than the model's: 1 of \d+"):
        bvllm.wrap(other, adapter=tmp_path)
    assert not hasattr(other, "_bvllm_host")
    bvllm.wrap(other, adapter=tmp_path, strict=False)
    assert "trained beside other weights" in caplog.text


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("now", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_base_in_another_dtype_is_the_same(
    made: Any, tmp_path: Path, saved: torch.dtype, now: torch.dtype
) -> None:
    bvllm.save_adapter(wrap_small(copy.deepcopy(made).to(saved)), tmp_path)
    bvllm.wrap(copy.deepcopy(made).to(now), adapter=tmp_path)


def test_an_adapter_of_before_fingerprints_is_read(made: Any, tmp_path: Path) -> None:
    bvllm.save_adapter(wrap_small(copy.deepcopy(made)), tmp_path)
    file = tmp_path / "adapter.json"
    about = json.loads(file.read_text())
    del about["saved"]
    file.write_text(json.dumps(about | {"format": 1}))
    (tmp_path / "host_fingerprint.safetensors").unlink()
    assert bvllm.wrap(copy.deepcopy(made), adapter=tmp_path)


def test_a_damaged_fingerprint(made: Any, tmp_path: Path) -> None:
    bvllm.save_adapter(wrap_small(copy.deepcopy(made)), tmp_path)
    file = tmp_path / "host_fingerprint.safetensors"
    for damaged in (b"", b"1234567890", file.read_bytes()[:100]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"host_fingerprint\.safetensors"):
            bvllm.wrap(copy.deepcopy(made), adapter=tmp_path)
    save_file({"a": torch.zeros(3)}, file, {"dtype": "float32"})
    with pytest.raises(CheckpointError, match=r"host_fingerprint\.safetensors: got"):
        bvllm.wrap(copy.deepcopy(made), adapter=tmp_path)


def test_an_offloaded_tokenizer_and_its_lora_are_saved(made: Any, tmp_path: Path) -> None:
    """As with device_map: weights are on no device until they are used."""
    if "LlavaLlama" in type(made).__name__:
        pytest.skip("timm's EVA reads weights of layers without calling them")
    model = wrap_small(copy.deepcopy(made))
    add_lora(model, decoder_linears(model, ("q_proj",)), rank=2, alpha=4)
    before = copy.deepcopy(model)
    cpu_offload(model, execution_device="cpu")
    assert model.balanced_tokenizer.spatial_sampler.queries.is_meta
    bvllm.save_adapter(model, tmp_path)
    again = bvllm.wrap(copy.deepcopy(made), adapter=tmp_path)
    assert equal(again, before)
