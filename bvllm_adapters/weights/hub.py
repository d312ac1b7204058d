"""Folders and hub ids: where saved things are read from and written to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download


def local_folder(source: str | Path, must_hold: str) -> Path:
    """`source` as a folder on disk: itself, or the snapshot of that hub id.

    Nothing is downloaded when HF_HUB_OFFLINE is set; then the hub's cache must hold it.

    Raises:
        FileNotFoundError: if the folder is not there or lacks the file `must_hold`.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or str(source).startswith((".", "~")):
            raise FileNotFoundError(f"{source}: not a folder")
        try:
            folder = Path(snapshot_download(str(source)))
        except Exception as error:
            raise FileNotFoundError(
                f"{source}: neither a folder here nor a hub id that could be had ({error})"
            ) from error
    if not (folder / must_hold).is_file():
        raise FileNotFoundError(f"{folder}: holds no {must_hold}")
    return folder


def upload(save: Callable[[Path], None], repo_id: str, *, private: bool | None = None) -> str:
    """Upload the files that `save(folder)` writes to a hub repository; returns its address."""
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder)
    return str(address)
