"""Saving whole or not at all: what is saved is there at once, or what was there before still is.

New files are written into a folder of their own inside the target. Renaming that folder is the one
step that counts: before it the old files are untouched, after it the new ones only have to be
moved. Whoever reads or saves next finishes that, wherever the process ended.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from bvllm_adapters.weights.json_file import CheckpointError

SAVED = ".bvllm-saved"  # holds whole new files that are yet to be moved into the folder around it
SAVING = ".bvllm-saving"  # begins the name of a folder that is still being written

_OURS = re.sub(r"\W", "", platform.node())  # this machine, as others may share its folders

# Weights of a model; those of an earlier save, in other shards, must not stay beside new ones.
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


@contextmanager
def saved_whole(folder: str | Path) -> Iterator[Path]:
    """A new folder to write into; what it holds at the end of the block goes into `folder`, over
    files of the same names. Nothing of it does if the block raises.

    Raises:
        ValueError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: got {folder}, which is a file, wanted a folder")
    folder.mkdir(parents=True, exist_ok=True)
    finish(folder)
    _remove_left_behind(folder)
    writing = Path(tempfile.mkdtemp(prefix=f"{SAVING}-{_OURS}-{os.getpid()}-", dir=folder))
    try:
        yield writing
        for file in writing.rglob("*"):
            if file.is_file():
                _flush(file)
        _commit(writing, folder)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    finish(folder)


@contextmanager
def aside(file: Path) -> Iterator[Path]:
    """Of a single file: another path in the same folder, which becomes `file` if the block ends
    well."""
    new = file.with_name(f".{uuid4().hex}.part")
    try:
        yield new
        _flush(new)
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)


def _commit(writing: Path, folder: Path) -> None:
    """The step that counts; after whoever else is saving here at the same time."""
    while True:
        try:
            writing.rename(folder / SAVED)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            finish(folder)


def finish(folder: Path) -> None:
    """Move what an interrupted save left into its folder.

    Raises:
        CheckpointError: the folder cannot be written to, so that only half of a save is in place.
    """
    saved = folder / SAVED
    if not saved.is_dir():
        return
    try:
        names = {file.name for file in saved.iterdir()}
        if any(_WEIGHTS.fullmatch(name) for name in names):
            for old in folder.iterdir():
                if _WEIGHTS.fullmatch(old.name) and old.name not in names:
                    old.unlink(missing_ok=True)
        found = sorted(saved.rglob("*"), reverse=True)  # what is deepest comes first
        for file in found:
            if file.is_file():
                target = folder / file.relative_to(saved)
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # another reader was there first
                    os.replace(file, target)
        # Folders that are empty, and no others: what is in them now is of the next save.
        for empty in [*(part for part in found if part.is_dir()), saved]:
            with suppress(OSError):
                empty.rmdir()
    except FileNotFoundError:  # another reader has moved all of it
        return
    except OSError as error:
        raise CheckpointError(
            f"{folder}: holds a save that was interrupted and cannot be finished ({error})"
        ) from error


def _remove_left_behind(folder: Path) -> None:
    """What processes of this machine were writing here when they were killed."""
    for left in folder.glob(f"{SAVING}-{_OURS}-*"):
        pid = left.name.removeprefix(f"{SAVING}-{_OURS}-").partition("-")[0]
        if pid.isdigit() and not _runs(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it does, and is somebody else's
        return True
    return True


def _flush(file: Path) -> None:
    """Onto the disk, so that the renaming cannot come first."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
