"""Nothing in the files of a transformers checkpoint costs time or memory, or runs, unchecked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from processors import PROCESSORS, write

import bvllm_adapters as bvllm
from bvllm_adapters.weights.json_file import CheckpointError

Name = tuple[str, ...]


@pytest.fixture(scope="module", params=PROCESSORS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(request.param, tmp_path_factory.mktemp(request.param))


def changed(saved: Path, folder: Path, file: str, name: Name, value: Any) -> Path:
    """A copy in which one setting says something else."""
    shutil.copytree(saved, folder)
    values = json.loads((folder / file).read_text())
    inner = values
    for part in name[:-1]:
        inner = inner[part]
    inner[name[-1]] = value
    (folder / file).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (("text_config", "num_hidden_layers"), 10**9, "num_hidden_layers: got 1000000000, wanted"),
        (("vision_config", "num_hidden_layers"), 10**9, "num_hidden_layers: got 1000000000, wan"),
        (("vision_config", "depth"), 10**9, "depth: got 1000000000, wanted 0 to"),
        (("text_config", "vocab_size"), 10**12, "vocab_size: got|got settings of a model of"),
        (("text_config", "hidden_size"), 10**6, "got settings of a model of"),
        (("text_config",), None, "got settings of a model of"),  # the published size
        (("text_config", "num_hidden_layers"), "x", "num_hidden_layers"),
        (("attn_implementation",), "hub/code", "attn_implementation: got 'hub/code', wanted one"),
        (("text_config", "_attn_implementation"), "hub/code", "_attn_implementation: got 'hub/c"),
    ],
)
def test_settings_of_a_model(
    saved: Path, tmp_path: Path, name: Name, value: Any, message: str
) -> None:
    folder = changed(saved, tmp_path / "changed", "config.json", name, value)
    with pytest.raises(CheckpointError, match=message) as told:
        bvllm.load(folder)
    assert str(folder) in str(told.value)


@pytest.mark.parametrize("part", ["video_processor", "image_processor"])
@pytest.mark.parametrize(
    "size",
    [{"shortest_edge": 10**10, "longest_edge": 10**11}, {"height": 10**6, "width": 10**6}],
)
def test_settings_of_pictures(saved: Path, tmp_path: Path, part: str, size: dict[str, int]) -> None:
    folder = changed(saved, tmp_path / "changed", "processor_config.json", (part, "size"), size)
    model = bvllm.wrap(bvllm.load(folder), max_tokens=5)
    with pytest.raises(CheckpointError, match=f"{folder}: processor: "):
        bvllm.open_video(model)


def test_code_that_a_file_names_is_not_looked_for(saved: Path, tmp_path: Path) -> None:
    named = {"AutoModel": "somebody/code--file.Model", "AutoConfig": "somebody/code--file.Config"}
    folder = changed(saved, tmp_path / "changed", "config.json", ("auto_map",), named)
    assert type(bvllm.load(folder)).__module__.startswith("transformers.")


def test_pickled_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, wanted weights as safetensors"):
        bvllm.load(folder)
