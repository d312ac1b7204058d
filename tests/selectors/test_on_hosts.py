"""Selectors without training on the paper's hosts, before the paper's sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from media import write_video
from tiny_hosts import SMALL, TINY_HOSTS, pair_of
from tiny_scouts import tiny_clip

import bvllm_adapters as bvllm
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.seeing.encoding import encode_pixels


@pytest.fixture(scope="module", params=TINY_HOSTS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return request.param(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=80)


@pytest.fixture(scope="module")
def scout(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    return bvllm.RelevanceSelector.from_pretrained(tiny_clip(tmp_path_factory.mktemp("scout")))


@pytest.mark.parametrize("name", ["coverage", "uniform", "tower", "relevance"])
def test_they_choose_for_the_sampler(host: Any, clip: Path, scout: Any, name: str) -> None:
    model, processor = host
    given = {"tower": bvllm.CoverageSelector(by="tower"), "relevance": scout}
    bvllm.wrap(model, selector=given.get(name, name), **SMALL)
    try:
        question = "what is on the wall"
        answer = bvllm.ask(model, clip, question, processor=processor, fps=4, max_new_tokens=2)
        trace = answer.trace
        assert trace.num_tokens == 9 and len(trace.frames) == 4
        assert trace.tower_passes == (32 if name == "tower" else 4)
        # As forward() gets it: pixels of the tower, and nothing else to make pictures of.
        served_by, video = host_of(model), bvllm.read_video(clip, fps=4)
        pixels = served_by.pixels(processor, video.frames)
        tokenizer = model.balanced_tokenizer
        seconds = torch.from_numpy(video.seconds)
        features = encode_pixels(pair_of(served_by, model), pixels, seconds, tokenizer)
        if name == "coverage":
            assert features.cls.shape == (32, 768)
            assert 0 <= float(features.cls.min()) < float(features.cls.max()) <= 1
        tokens = tokenizer([features], [question])[0]
        assert len(tokens) == 9 and len(tokens.selection) == 4
        if name == "uniform":
            assert tokens.selection.frame.tolist() == [frame.frame for frame in trace.frames]
    finally:
        bvllm.unwrap(model)
