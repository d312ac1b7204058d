"""Where a published model lies: the files, and what their keys are called in the model.

A model may lie in several places: the language model in a base folder, the vision tower in a file
of its own, the rest in a projector file or a LoRA folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bvllm_adapters.weights.checkpoint import (
    CheckpointError,
    has_weights,
    read_pickle,
    read_shapes,
    read_tensors,
    weight_files,
)
from bvllm_adapters.weights.hub import local_folder, named_folder
from bvllm_adapters.weights.json_file import read_json
from bvllm_adapters.weights.sizes import Shape
from bvllm_llama_vid.configuration import TOWER, LlavaConfig, is_eva

PROJECTOR_FILE = "mm_projector.bin"
LORA_CONFIG = "adapter_config.json"
LORA_REST = "non_lora_trainables.bin"


@dataclass(frozen=True)
class Source:
    """Files, and what their keys are called in the model; None: not wanted from here."""

    files: list[Path]
    rename: Callable[[str], str | None] = lambda key: key

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for file in self.files:
            for key, tensor in read_file(file):
                if (name := self.rename(key)) is not None:
                    yield name, tensor

    def shapes(self) -> dict[str, Shape]:
        """Read from the heads of the files; no tensor is."""
        found = ((self.rename(key), shape) for key, shape in read_shapes(self.files))
        return {name: shape for name, shape in found if name is not None}


def find_base(folder: Path, base: str | Path | None) -> Path | None:
    """Where the rest of the model is; None: the folder is a full checkpoint."""
    lora = (folder / LORA_CONFIG).is_file()
    if not lora and (not (folder / PROJECTOR_FILE).is_file() or has_weights(folder)):
        return None
    return local_folder(base or base_named_in(folder, lora), "config.json")


def find_sources(folder: Path, base: Path | None) -> list[Source]:
    """A full checkpoint; or what the folder changes of its base, before the rest of that base."""
    if base is None:
        return [Source(weight_files(folder))]
    changes = [folder / name for name in (LORA_REST, PROJECTOR_FILE) if (folder / name).is_file()]
    changed = Source(changes[:1], name_of_trainer)
    names = changed.shapes()
    return [changed, Source(weight_files(base), lambda key: None if key in names else key)]


def base_named_in(folder: Path, lora: bool) -> Path:
    name, key = (
        (LORA_CONFIG, "base_model_name_or_path") if lora else ("config.json", "_name_or_path")
    )
    named = read_json(folder / name).get(key)
    if not named:
        raise CheckpointError(
            f"base: got None, and {folder / name} does not name it as {key}; "
            "wanted the folder of the model that this one changes"
        )
    return named_folder(folder / name, f"base: got None, {key}", named)


def name_of_trainer(key: str) -> str:
    """The model's name of a key of mm_projector.bin or non_lora_trainables.bin."""
    key = key.removeprefix("base_model.model.")
    return key if key.startswith(("model.", "lm_head.")) else f"model.{key}"


def tower_source(folder: Path, config: LlavaConfig) -> Source:
    """The vision tower's own files: beside the checkpoint, at an absolute path, or cached."""
    name = str(config.mm_vision_tower)
    place = folder / name  # an absolute name stays itself
    if not place.exists():
        try:
            place = named_folder(folder / "config.json", "mm_vision_tower", name)
        except CheckpointError as error:
            raise CheckpointError(
                f"{folder}: holds no vision tower, and mm_vision_tower={name!r} is neither at "
                f"{place} nor in the hub's cache"
            ) from error
    files = weight_files(place) if place.is_dir() else [place]
    eva = is_eva(config)
    anchor = "patch_embed.proj.weight" if eva else "embeddings.class_embedding"
    keys = [key for key, _ in read_shapes(files)]
    prefixes = [key.removesuffix(anchor) for key in keys if key.endswith(anchor)]
    if len(prefixes) != 1:
        raise CheckpointError(f"{place}: got {len(prefixes)} keys '...{anchor}', wanted one tower")
    prefix, level = prefixes[0], "" if eva else "vision_model."
    # A whole CLIP has a text half and projections too, none of which lie under the prefix.
    return Source(
        files,
        lambda key: f"{TOWER}{level}{key.removeprefix(prefix)}" if key.startswith(prefix) else None,
    )


def read_file(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Every (key, tensor); a .pth may be of the old format, and hold its tensors a level deeper."""
    if file.suffix != ".pth":
        yield from read_tensors([file])
        return
    state = read_pickle(file, "cpu")
    while state:
        key = next(iter(state))
        yield key, state.pop(key)
