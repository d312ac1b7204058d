"""Certification: all checks of one host, in the order in which a model lives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from bvllm_adapters.certify import of_answers, of_calls, of_keeping, of_tokens, of_wrapping
from bvllm_adapters.certify.report import Check, Outcome, Report
from bvllm_adapters.certify.subject import Subject
from bvllm_adapters.hosts.base import base_model
from bvllm_adapters.hosts.find import find_host, host_of, list_hosts, processor_of
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.hosts.load import load
from bvllm_adapters.hosts.wrapped import Wrapped

ROOMS = (of_wrapping, of_tokens, of_answers, of_calls, of_keeping)
CHECKS: tuple[Check, ...] = tuple(check for room in ROOMS for check in room.CHECKS)

Told = Callable[[Outcome], None]


def certify(
    model: nn.Module,
    processor: Any = None,
    *,
    host: str | None = None,
    only: Iterable[str] | None = None,
    told: Told | None = None,
) -> Report:
    """Hold a host to the contract, on one of its models: each check is passed, failed with what
    came and what was wanted, or not applicable with the reason.

    The model is wrapped and unwrapped many times, and copied; it is left as it came.

    Args:
        model: not wrapped, in eval mode. processor: None: that beside its checkpoint.
        host: "module:OBJECT" instead of the published one.
        only: names of checks; None: all. told: called with each outcome as it comes.

    Raises:
        HostError: no host serves it. ValueError: a wrapped model, or an unknown check.
    """
    base: Any = base_model(model)
    if isinstance(base, Wrapped):
        raise ValueError("model: got a wrapped model, wanted one that is not; unwrap it first")
    served_by = find_host(host) if host is not None else host_of(base)
    processor = processor_of(base) if processor is None else processor
    return _report(Subject(base, processor, served_by, name=host), only, told)


def certify_class(
    name: str,
    folder: str | Path | None = None,
    *,
    host: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    only: Iterable[str] | None = None,
    told: Told | None = None,
) -> Report:
    """The same of a model class that an installed host serves, from loading it on.

    Args:
        name: of the class. host, only, told: see `certify`.
        folder: of a checkpoint; None: the tiny one that the host's `tiny` writes.

    Raises:
        HostError: no host serves it, or none that makes a tiny one. CheckpointError: a folder
        that cannot be read.
    """
    served_by = find_host(name if host is None else host)
    if folder is not None:
        return _loaded(name, Path(folder), served_by, host, dtype, device, only, told)
    make = getattr(served_by, "tiny", None)
    if make is None:
        raise HostError(
            f"host {name} has no `tiny(folder, name)`, which makes a model to try; wanted "
            "--model FOLDER, of a checkpoint with its processor"
        )
    with TemporaryDirectory() as made:
        make(Path(made), name)
        return _loaded(name, Path(made), served_by, host, dtype, device, only, told)


def _loaded(
    name: str,
    folder: Path,
    served_by: Any,
    host: str | None,
    dtype: torch.dtype,
    device: torch.device | str,
    only: Iterable[str] | None,
    told: Told | None,
) -> Report:
    model = load(folder, dtype=dtype, host=host).to(device)
    if isinstance(model, Wrapped):
        raise ValueError(f"{folder}: got a wrapped model, wanted the host alone")
    subject = Subject(
        model, served_by.processor(folder), served_by, name=host, folder=folder, asked_for=name
    )
    return _report(subject, only, told)


def _report(subject: Subject, only: Iterable[str] | None, told: Told | None) -> Report:
    outcomes = []
    for check in _chosen(only):
        outcomes.append(check.outcome(subject))
        if told is not None:
            told(outcomes[-1])
    return Report(type(subject.model).__name__, _publisher(subject), tuple(outcomes))


def _chosen(only: Iterable[str] | None) -> list[Check]:
    if only is None:
        return list(CHECKS)
    names, known = [*only], [check.name for check in CHECKS]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"only: got {unknown}, wanted some of {known}")
    return [check for check in CHECKS if check.name in names]


def _publisher(subject: Subject) -> str:
    if subject.name is not None:
        return subject.name
    classes = [cls.__name__ for cls in type(subject.model).__mro__]
    published = {info.name: str(info) for info in list_hosts()}
    return next((published[name] for name in classes if name in published), "nobody")
