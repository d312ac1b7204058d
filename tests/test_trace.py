from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bvllm_adapters import Selection, VisualTokens
from bvllm_adapters.ledger import ledger, stage
from bvllm_adapters.trace import Trace


def test_stages_add_up_and_cost_nothing_outside_a_ledger():
    with stage("before"):
        pass
    with ledger() as seconds:
        for _ in range(2):
            with stage("sleep"):
                time.sleep(0.02)
        with stage("nothing"):
            pass
    with stage("after"):
        pass
    assert list(seconds) == ["sleep", "nothing"]
    assert seconds["sleep"] >= 0.04 > seconds["nothing"]


def test_a_stage_is_booked_without_those_within_it(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 5.0])
    with monkeypatch.context() as patched, ledger() as seconds:
        patched.setattr(time, "perf_counter", lambda: next(clock))
        with stage("outer"), stage("inner"):
            pass
    assert seconds == {"inner": 3.0, "outer": 2.0}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux resets its mark")
def test_peak_memory_is_that_of_its_stage():
    """In a process of its own: this one's allocator may hold memory that others gave back."""
    code = """
import json, torch
from bvllm_adapters.ledger import ledger, peak_memory, stage
with peak_memory() as peaks, ledger() as seconds:
    with stage("before"):
        pass
    with stage("large"):
        torch.zeros(64 * 2**20 // 4).fill_(1)  # 64 MiB, given back at once
    with stage("after"):
        pass
print(json.dumps([peaks, list(seconds)]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peaks, seconds = json.loads(out.stdout)
    assert list(peaks) == seconds == ["before", "large", "after"]
    assert peaks["large"] >= peaks["before"] + 50 * 2**20
    assert peaks["large"] >= peaks["after"] + 50 * 2**20


def test_a_stage_that_fails_is_booked():
    with ledger() as seconds:
        try:
            with stage("broken"):
                raise RuntimeError
        except RuntimeError:
            pass
    assert "broken" in seconds


def test_a_ledger_within_another_is_booked_in_both():
    with ledger() as outer:
        with stage("inner"):
            pass
        before = outer["inner"]
        with ledger() as seconds, stage("inner"):
            pass
        assert set(seconds) == {"inner"}
    assert outer == {"inner": before + seconds["inner"]}


def test_another_thread_does_not_write_into_this_ledger():
    def other():
        with stage("other"):
            pass

    with ledger() as seconds:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seconds == {}


def test_soft_choices_are_told_with_their_weights():
    selection = Selection(
        torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([3.0, 1])
    )
    tokens = VisualTokens(
        torch.zeros(3, 2),
        torch.tensor([0, 0, 1]),
        torch.ones(3),
        selection,
        torch.tensor([0.0, 1.5, 4.0]),
        torch.tensor([0, 1, 0]),
    )
    trace = Trace.of(tokens, max_tokens=None, seconds={"decode": 0.5})
    first, second = trace.frames
    assert (first.frame, first.second, first.choices, first.tokens) == (0, 0.0, 3, 2)
    assert first.weights == {0: 0.75, 1: 0.25}
    assert (second.frame, second.second, second.tokens) == (2, 4.0, 1)
    shown = str(trace)
    assert "3 decoded, 2 chosen" in shown
    assert "3 visual tokens of no limit" in shown
    assert "decode 0.500" in shown
