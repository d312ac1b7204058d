from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_memory_is_followed(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from alive_at_once import most_alive

    given = torch.zeros(1000)

    def run():
        one = given + 1  # 4,000 bytes
        view = one[:500]  # none
        two = torch.cat([view, one])  # 6,000 more
        del one, view
        return two.double()  # 12,000 beside those

    assert most_alive(run) == 18_000


@pytest.mark.skipif(not hasattr(transformers, "Qwen3VLConfig"), reason="an older transformers")
def test_sizes_are_those_of_the_checkpoints(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import published_sizes

    for name, count in published_sizes.PARAMETERS.items():
        model = published_sizes.build(name)
        weights = {id(weight): weight.numel() for weight in model.parameters()}
        assert sum(weights.values()) == count, name


@pytest.mark.slow
def test_the_page_is_what_is_counted():
    out = subprocess.run(
        [sys.executable, EXAMPLES / "which_settings.py", "--check"], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stdout + out.stderr
