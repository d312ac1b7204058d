"""A model from a folder or the hub, by whichever host serves its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bvllm_adapters.hosts.find import find_host, published_host
from bvllm_adapters.hosts.host import Host, HostError
from bvllm_adapters.hosts.language_model import tell_if_newer_than_tested
from bvllm_adapters.hosts.wrap import wrap
from bvllm_adapters.hosts.wrapped import ADAPTER_FOLDER
from bvllm_adapters.weights.hub import local_folder
from bvllm_adapters.weights.json_file import CheckpointError, read_json
from bvllm_adapters.weights.sizes import check_settings


def load(
    source: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    host: str | None = None,
    revision: str | None = None,
    strict: bool = True,
) -> Any:
    """A model of a known host from a folder or hub id, in eval mode; wrapped if it was saved so.

    Runs no code of the checkpoint; downloads nothing when HF_HUB_OFFLINE is set. Which class the
    model is of stands in the checkpoint, so type checkers are told nothing of it.

    Args:
        base: folder or hub id of the model that a LoRA or projector-only folder changes, where
            its files do not name one, or one that is neither on this disk nor in the hub's cache:
            what a file names is not downloaded.
        dtype: of all weights. host: "module:OBJECT" instead of the published one.
        revision: branch, tag or commit of a hub id.
        strict: see `wrap`.

    Raises:
        FileNotFoundError: there is no such folder, or no config.json in it. HostError: no host
        serves the class that it names. CheckpointError: a file that cannot be read, or does not fit
        the others.
    """
    tell_if_newer_than_tested()
    folder = local_folder(source, "config.json", revision)
    file = folder / "config.json"
    config = read_json(file)
    check_settings(file, config)
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{file}: architectures: got {names!r}, wanted a list of names")
    if host is None and not names:
        raise HostError(
            f"{file} names no architectures, so no host can be found; name its class there, or "
            "choose with host='module:OBJECT' (`bvllm hosts` lists the installed ones)"
        )
    from_base = {} if base is None else {"base": base}
    served_by = _named_in(file, names[0]) if host is None else find_host(host)
    model = served_by.load(folder, dtype=dtype, **from_base).eval()
    if (folder / ADAPTER_FOLDER).is_dir():
        wrap(model, adapter=folder / ADAPTER_FOLDER, host=host, strict=strict)
    return model


def _named_in(file: Path, name: str) -> Host:
    """The host of the class that a file names; HostError names the file too."""
    try:
        return published_host(name)
    except HostError as error:
        raise HostError(f"{file}: {error}") from error
