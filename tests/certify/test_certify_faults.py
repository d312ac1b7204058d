"""A check that cannot fail guards nothing: each is shown a host with a fault that it must name."""

from __future__ import annotations

import copy
from inspect import signature
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
import transformers
from acme_host.host import HOST
from acme_host.modeling import tiny_model

import bvllm_adapters as bvllm
from bvllm_adapters.certify import CHECKS, certify

ACME, QWEN = faults.ACME, faults.QWEN


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from bvllm_transformers.tiny import write_tiny_checkpoint

    name = "Qwen2_5_VLForConditionalGeneration"
    if "mm_encoder_outputs" not in signature(getattr(transformers, name).forward).parameters:
        pytest.skip(f"transformers {transformers.__version__} takes no mm_encoder_outputs")
    folder = tmp_path_factory.mktemp("qwen")
    write_tiny_checkpoint(folder, name)
    return bvllm.load(folder)


@pytest.mark.parametrize("name", ACME)
def test_a_third_partys_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, plant = ACME[name]
    host = plant(monkeypatch) or HOST
    planted = faults.install(monkeypatch, host)
    report = certify(tiny_model(), host.processor(Path()), host=planted, only=[check])
    assert report[check].state == "failed", str(report)
    assert not report.passed
    with pytest.raises(AssertionError, match=f"1 checks failed\nfailed +{check}"):
        report.raise_for_failures()


@pytest.mark.parametrize("name", QWEN)
def test_transformers_host(name: str, qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check, plant = QWEN[name]
    host = plant(monkeypatch)
    named = None if host is None else faults.install(monkeypatch, host)
    report = certify(qwen, host=named, only=[check])
    assert report[check].state == "failed", str(report)


def test_every_check_has_its_fault() -> None:
    found = {check for check, _ in [*ACME.values(), *QWEN.values()]}
    assert found == {check.name for check in CHECKS}


def test_a_model_is_left_as_it_came() -> None:
    """Also where checks have failed."""
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    report = certify(model, HOST.processor(Path()), host="acme_host:HOST", only=["ask", "adapter"])
    assert report.passed
    assert type(model) is type(tiny_model())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
