from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bvllm_adapters.weights.checkpoint import (
    CheckpointError,
    load_strictly,
    read_tensors,
    weight_files,
)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def write(folder, layout, state):
    """Write `state` in a published layout."""
    kind, suffix = layout
    save = save_file if suffix == ".safetensors" else torch.save
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    if kind == "single":
        save(state, folder / f"{stem}{suffix}")
        return
    keys = sorted(state)
    halves = {f"{stem}-0000{i + 1}-of-00002{suffix}": keys[i::2] for i in range(2)}
    for name, half in halves.items():
        save({key: state[key] for key in half}, folder / name)
    if kind == "indexed":
        weight_map = {key: name for name, half in halves.items() for key in half}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


LAYOUTS = [(k, s) for k in ("single", "indexed", "sharded") for s in (".safetensors", ".bin")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_into_a_model_on_the_meta_device(tmp_path, layout):
    state = model().state_dict()
    write(tmp_path, layout, state)
    with torch.device("meta"):
        empty = model()
    report = load_strictly(empty, read_tensors(weight_files(tmp_path)))
    assert report.loaded == set(state)
    for key, value in empty.state_dict().items():
        assert torch.equal(value, state[key])


def test_torchs_old_format_is_read(tmp_path):
    state = model().state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    read = dict(read_tensors(weight_files(tmp_path)))
    assert all(torch.equal(read[key], value) for key, value in state.items())


def test_safetensors_go_before_pickles(tmp_path):
    write(tmp_path, ("single", ".bin"), model().state_dict())
    write(tmp_path, ("single", ".safetensors"), model().state_dict())
    assert [file.suffix for file in weight_files(tmp_path)] == [".safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_model_does_not_change_with_its_file(tmp_path, suffix):
    """Files are mapped when they are read: what is loaded must not lie in them."""
    write(tmp_path, ("single", suffix), model().state_dict())
    loaded, wanted = model(), model()
    (file,) = weight_files(tmp_path)
    load_strictly(loaded, read_tensors([file]))
    with file.open("r+b") as opened:
        opened.write(b"\xff" * file.stat().st_size)
    assert torch.equal(loaded[0].weight, wanted[0].weight)
    assert all(parameter.data_ptr() % 16 == 0 for parameter in loaded.parameters())


def test_renaming_ignoring_and_dtype():
    state = {f"old.{k}": v for k, v in model().state_dict().items()} | {"dead": torch.zeros(1)}
    made = model()
    report = load_strictly(
        made,
        state.items(),
        rename=lambda key: None if key == "dead" else key.removeprefix("old."),
        dtype=torch.bfloat16,
    )
    assert report.ignored == ["dead"]
    assert made[0].weight.dtype == torch.bfloat16 and made[0].weight.requires_grad
    assert made[1].num_batches_tracked.dtype == torch.int64


def test_what_does_not_fit_is_listed():
    state = model().state_dict()
    state["1.weight"] = torch.zeros(5)
    state["new"] = state.pop("0.bias")
    with pytest.raises(CheckpointError) as error:
        load_strictly(model(), state.items(), source="some/folder")
    told = str(error.value)
    assert told.startswith("some/folder: keys do not fit the model")
    assert "1 missing: 0.bias" in told
    assert "1 unexpected: new" in told
    assert "1 of another shape: 1.weight (5,), wanted (4,)" in told
    with pytest.raises(CheckpointError, match=r"two comes twice, as 0\.bias"):
        load_strictly(
            model(),
            [("one", torch.zeros(4)), ("two", torch.zeros(4))],
            rename=lambda key: "0.bias",
        )


def test_a_key_may_be_optional():
    state = model().state_dict()
    del state["0.bias"]
    assert load_strictly(model(), state.items(), optional=lambda key: key == "0.bias").missing == []


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    write(tmp_path, ("single", suffix), model().state_dict())
    (file,) = weight_files(tmp_path)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=f"{file.name}: cannot be read"):
        list(read_tensors([file]))


def test_code_in_a_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        list(read_tensors(weight_files(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        weight_files(tmp_path)
    write(tmp_path, ("sharded", ".bin"), model().state_dict())
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="got 1 shards, wanted 2"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.bin"}}')
    with pytest.raises(CheckpointError, match=r"not there: \['gone.bin'\]"):
        weight_files(tmp_path)
