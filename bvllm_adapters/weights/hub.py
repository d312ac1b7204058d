"""Folders and hub ids: where saved things are read from and written to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from bvllm_adapters.weights.json_file import CheckpointError
from bvllm_adapters.weights.whole import finish


def local_folder(source: str | Path, must_hold: str, revision: str | None = None) -> Path:
    """`source` as a folder on disk: itself, or the snapshot of that hub id.

    Nothing is downloaded when HF_HUB_OFFLINE is set; then the hub's cache must hold it.

    Args:
        revision: branch, tag or commit of a hub id; None: its main branch.

    Raises:
        FileNotFoundError: if the folder is not there or lacks the file `must_hold`.
        ValueError: a revision of a folder.
    """
    folder = Path(source)
    if revision is not None and folder.is_dir():
        raise ValueError(f"revision: got {revision!r} of the folder {folder}, wanted a hub id's")
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or str(source).startswith((".", "~")):
            raise FileNotFoundError(f"{source}: not a folder")
        try:
            folder = Path(snapshot_download(str(source), revision=revision))
        except Exception as error:
            raise FileNotFoundError(
                f"{source}: neither a folder here nor a hub id that could be had ({error})"
            ) from error
    finish(folder)
    if not (folder / must_hold).is_file():
        raise FileNotFoundError(f"{folder}: holds no {must_hold}")
    return folder


def named_folder(file: Path, key: str, name: object) -> Path:
    """The folder that stands in a file as `key`: beside it, elsewhere on this disk, or in the hub's
    cache. What a file names is never downloaded.

    Raises:
        CheckpointError: it is neither.
    """
    if isinstance(name, str) and name and "\0" not in name:
        beside = file.parent / name  # an absolute name stays what it is
        try:
            return beside if beside.is_dir() else Path(_cached(name))
        except Exception as error:  # not in the cache, or no hub id at all
            raise CheckpointError(
                f"{file}: {key}: got {name!r}, which is no folder here nor in the hub's cache "
                "(nothing that a file names is downloaded)"
            ) from error
    raise CheckpointError(f"{file}: {key}: got {name!r}, wanted the name of a folder")


def _cached(name: str) -> str:
    return snapshot_download(name, local_files_only=True)


def checkpoint_of(name: str) -> Path | None:
    """The folder that a model was loaded from, by its `name_or_path`: one on this disk, or what the
    hub's cache holds of that id; None: neither. Nothing is downloaded."""
    if not name or "\0" in name:
        return None
    if (Path(name) / "config.json").is_file():
        return Path(name)
    try:
        return Path(_cached(name))
    except Exception:  # whatever it is that is no hub id, or not in the cache
        return None


def inside(file: Path, key: str, name: object) -> Path:
    """What stands in a file as `key`, as a path in the file's own folder.

    Raises:
        CheckpointError: it leads out of there.
    """
    path = Path(name) if isinstance(name, str) and "\0" not in name else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts:
        raise CheckpointError(f"{file}: {key}: got {name!r}, wanted a file in the same folder")
    return file.parent / path


def upload(save: Callable[[Path], None], repo_id: str, *, private: bool | None = None) -> str:
    """Upload the files that `save(folder)` writes to a hub repository; returns its address."""
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder)
    return str(address)
