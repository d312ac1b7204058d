"""Whatever a batch holds, each trained weight of the tokenizer gets a gradient."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rows_without_video import inputs
from runs import HOSTS

import bvllm_adapters as bvllm
from bvllm_adapters.context import asking

SCRIPT = Path(__file__).with_name("rows_without_video.py")
KINDS = ("video", "image", "words", "dummy")


def wrapped(host: str, hosts: dict[str, Path]) -> Any:
    torch.manual_seed(0)
    return bvllm.wrap(bvllm.load(hosts[host]), max_tokens=12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", HOSTS)
def test_each_weight_has_a_gradient(host: str, kind: str, hosts: dict[str, Path]) -> None:
    model, batch = wrapped(host, hosts).train(), inputs(host, kind)
    frozen = next(iter(model.balanced_tokenizer.projection.parameters()))
    frozen.requires_grad_(False)
    torch.manual_seed(1)
    with asking("what?"):
        model(**batch).loss.backward()
    drawn = torch.rand(3)
    gradients = {n: p.grad for n, p in model.balanced_tokenizer.named_parameters()}
    assert [n for n, g in gradients.items() if g is None] == [
        n for n, p in model.balanced_tokenizer.named_parameters() if p is frozen
    ]
    if kind in ("words", "dummy"):
        assert not any(bool(g.any()) for g in gradients.values() if g is not None)
        torch.manual_seed(1)
        assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", HOSTS)
def test_values_stay_as_they_are(host: str, kind: str, hosts: dict[str, Path]) -> None:
    model, batch = wrapped(host, hosts), inputs(host, kind)
    with asking("what?"):
        if kind in ("words", "dummy"):  # nothing is drawn
            assert torch.equal(model.train()(**batch).logits, model.eval()(**batch).logits)
        out = model.eval()(**batch)
    weights = list(model.balanced_tokenizer.parameters())
    reached = torch.autograd.grad(out.loss, weights, allow_unused=True)
    if kind in ("words", "dummy"):
        assert all(each is None for each in reached)


@pytest.mark.parametrize("host", HOSTS)
def test_weights_that_are_no_numbers_do_not_spread(host: str, hosts: dict[str, Path]) -> None:
    model, batch = wrapped(host, hosts).train(), inputs(host, "words")
    with torch.no_grad():
        for weight in model.balanced_tokenizer.parameters():
            weight.fill_(float("nan"))
    model(**batch).loss.backward()
    for weight in model.balanced_tokenizer.parameters():
        assert not bool(weight.grad.any())


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("bvllm_qwen2", "words"),
        pytest.param("bvllm_videollama2", "words", marks=pytest.mark.slow),
        pytest.param("bvllm_llama_vid", "words", marks=pytest.mark.slow),
        pytest.param("bvllm_qwen2", "image", marks=pytest.mark.slow),
        pytest.param("bvllm_videollama2", "image", marks=pytest.mark.slow),
        pytest.param("bvllm_videollama2", "dummy", marks=pytest.mark.slow),
        pytest.param("bvllm_llama_vid", "image", marks=pytest.mark.slow),
        pytest.param("bvllm_llama_vid", "dummy", marks=pytest.mark.slow),
    ],
)
def test_two_processes_go_on(host: str, kind: str, hosts: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), host, str(hosts[host]), kind],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("same gradients") == 2
