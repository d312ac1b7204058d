"""Published checkpoints: reading each tensor once, and accounting for every key.

Layouts: model.safetensors, pytorch_model.bin, either in shards with or without an index. Pickle
files are read with weights_only=True, so that no code of a checkpoint runs.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from bvllm_adapters.weights.json_file import CheckpointError as CheckpointError
from bvllm_adapters.weights.json_file import read_json, readable

Named = Iterable[tuple[str, Tensor]]

# A whole file, or its shards with an index or, failing that, by their numbers; in this order.
_STEMS = ("model", "pytorch_model")
_SUFFIXES = (".safetensors", ".bin")
# What a Trainer's checkpoint of a wrapped model holds beside the host's own weights, by which it
# resumes. The adapter in the same folder holds it too, and is what is read.
_LIVE = re.compile(r"balanced_tokenizer\..*|.*\.bvllm_lora\..*")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights; safetensors go before pickles.

    Raises:
        CheckpointError: for none, an index that cannot be read or names anything but files beside
            it, or shards that are missing.
    """
    found = _found(folder)
    if not found:
        raise CheckpointError(
            f"{folder}: holds no weights (model*.safetensors or pytorch_model*.bin)"
        )
    return found


def has_weights(folder: Path) -> bool:
    """Whether there are any, readable or not."""
    try:
        return bool(_found(folder))
    except CheckpointError:
        return True


def _found(folder: Path) -> list[Path]:
    for suffix in _SUFFIXES:
        for stem in _STEMS:
            index = folder / f"{stem}{suffix}.index.json"
            if index.is_file():
                return _indexed(index)
            if (folder / f"{stem}{suffix}").is_file():
                return [folder / f"{stem}{suffix}"]
            shards = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
            if shards:
                wanted = int((re.findall(r"-of-(\d{1,9})\.", shards[0].name) or ["0"])[-1])
                if len(shards) != wanted:
                    raise CheckpointError(f"{folder}: got {len(shards)} shards, wanted {wanted}")
                return shards
    return []


def _indexed(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise CheckpointError(f"{index}: got no weight_map, wanted a file for each key")
    wrong = [name for name in places.values() if not is_plain_name(name)]
    if wrong:
        raise CheckpointError(f"{index}: got {wrong[:3]}, wanted names of files beside it")
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index}: names files that are not there: {missing}")
    return [index.parent / name for name in names]


def is_plain_name(name: object) -> bool:
    """Whether a file's word for another is the name of one in the same folder, and no path."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not set(name) & {"/", "\\", "\0"}
        and ":" not in name
    )


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every (key, tensor) of these files, one at a time; no file is held in memory whole."""
    for file in files:
        with readable(file):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as tensors:
                    for key in tensors.keys():
                        yield key, tensors.get_tensor(key)
            else:
                mapped = zipfile.is_zipfile(file)  # torch's format of before 1.6 is none
                state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
                while state:
                    key = next(iter(state))
                    tensor = state.pop(key)
                    if not isinstance(tensor, Tensor):
                        raise ValueError(f"holds a {type(tensor).__name__} as {key}")
                    yield key, tensor


def read_shapes(files: Iterable[Path]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every (key, shape), read from the heads of the files; no tensor is."""
    for file in files:
        if file.suffix != ".safetensors":
            for key, tensor in read_pickle(file, "meta").items():
                yield key, tuple(tensor.shape)
            continue
        with readable(file), safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():
                yield key, tuple(tensors.get_slice(key).get_shape())


def read_pickle(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a torch file, which may hold them a level deeper, of old formats too.

    Raises:
        CheckpointError: for a file that cannot be read, or holds no named tensors.
    """
    with readable(file):
        state: Any = torch.load(
            file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    for level in ("model", "state_dict", "module"):
        if isinstance(state, Mapping) and isinstance(state.get(level), Mapping):
            state = state[level]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{file}: holds a {type(state).__name__}, wanted named tensors")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


@dataclass
class KeyReport:
    """What became of a checkpoint's keys.

    Args:
        ignored: published leftovers that this model has no use for.
        missing, unexpected: of the model and of the checkpoint; wrong_shape: (key, got, wanted).
    """

    loaded: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        parts = [
            f"{len(keys)} {what}: {', '.join(keys[:20])}{' ...' if len(keys) > 20 else ''}"
            for what, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.wrong_shape),
            )
            if keys
        ]
        return "; ".join(parts) or f"{len(self.loaded)} loaded, {len(self.ignored)} ignored"


def check_same(
    source: str | Path, whose: str, ours: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> None:
    """CheckpointError unless `saved` has the names and shapes of `ours`, neither more nor fewer.

    Args:
        source: what was read. whose: what `ours` are, for the message.
    """
    report = KeyReport(
        missing=sorted(ours.keys() - saved.keys()),
        unexpected=sorted(saved.keys() - ours.keys()),
        wrong_shape=[
            f"{name} {tuple(saved[name].shape)}, wanted {tuple(ours[name].shape)}"
            for name in sorted(ours.keys() & saved.keys())
            if saved[name].shape != ours[name].shape
        ],
    )
    if not report.fits:
        raise CheckpointError(f"{source}: does not fit {whose}: {report}")


def load_strictly(
    model: nn.Module,
    tensors: Named,
    *,
    rename: Callable[[str], str | None] = lambda key: key,
    dtype: torch.dtype | None = None,
    source: str = "checkpoint",
    optional: Callable[[str], bool] = lambda key: False,
) -> KeyReport:
    """Copy each tensor to its place in the model, which may be on the meta device, one at a time.

    Args:
        tensors: (published key, tensor) pairs.
        rename: published key -> the model's key; None: a known leftover.
        dtype: of floating-point weights; None: as they come.
        source: what is read, for messages.
        optional: of a model's key, whether it may be missing (tied weights).

    Raises:
        CheckpointError: a key is missing, unexpected, double or of another shape; lists them.
    """
    slots: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    kept = set(model.state_dict())
    slots |= {
        name: value for name, value in model.named_buffers(remove_duplicate=False) if name in kept
    }
    report = KeyReport()
    for key, tensor in tensors:
        name = rename(key)
        if name is None:
            report.ignored.append(key)
        elif name not in slots:
            (report.ignored if _LIVE.fullmatch(name) else report.unexpected).append(key)
        elif name in report.loaded:
            raise CheckpointError(f"{source}: {key} comes twice, as {name}")
        elif tensor.shape != slots[name].shape:
            wanted = tuple(slots[name].shape)
            report.wrong_shape.append(f"{key} {tuple(tensor.shape)}, wanted {wanted}")
            report.loaded.add(name)
        else:
            _assign(model, name, _own(tensor, dtype))
            report.loaded.add(name)
    report.missing = [name for name in slots if name not in report.loaded and not optional(name)]
    if not report.fits:
        raise CheckpointError(f"{source}: keys do not fit the model: {report}")
    return report


def _own(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy in memory of its own, in `dtype` if it is floating point.

    What is read lies in a mapped file: it would change with the file, and it is aligned as it lies
    there, on which the last bit of a matrix product can depend.
    """
    return tensor.to(dtype if tensor.is_floating_point() else None, copy=True)


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, attribute)
    if isinstance(old, nn.Parameter):
        setattr(module, attribute, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        module.register_buffer(attribute, tensor)
