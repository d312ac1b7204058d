"""What was wrapped without training is saved as an adapter and answers the same from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asked
import processors
import pytest
import torch
from tiny_scouts import tiny_clip
from torch import Tensor

import bvllm_adapters as bvllm
from bvllm_adapters.features import Selection
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.selectors.coverage import CoverageSelector
from bvllm_adapters.selectors.names import named_selector
from bvllm_adapters.weights.json_file import CheckpointError

QUESTION = "What is the man in red doing?"


def answer(model: Any, name: str) -> tuple[str, Any]:
    found = bvllm.ask(
        model, asked.FRAMES, QUESTION, processor=processors.processor(name), max_new_tokens=6,
        output_scores=True, do_sample=False,
    )  # fmt: skip
    return found.text, torch.stack(found.generated.scores)


def selectors(folder: Path) -> dict[str, Any]:
    scout = bvllm.RelevanceSelector.from_pretrained(tiny_clip(folder))
    return {
        "coverage": "coverage",
        "random": "random",
        "top-k": "top-k",
        "a module": CoverageSelector(diversity=0.25, novelty_seconds=None, by="tower"),
        "random of a seed": named_selector("random", seed=7),
        "relevance": bvllm.RelevanceSelector(scout.files, diversity=0.125, novelty=0.5),
        "inverse transform": named_selector("inverse-transform", scout),
        "coverage by a scout": named_selector("coverage", scout, smooth_seconds=0.0),
    }


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_a_saved_wrap_answers_to_the_bit(name: str, tmp_path: Path) -> None:
    for i, (label, selector) in enumerate(selectors(tmp_path / "clip").items()):
        model = asked.wrapped(name, max_tokens=13, num_frames=2, selector=selector)
        bvllm.save_adapter(model, tmp_path / str(i))
        again = bvllm.wrap(processors.model(name), host=asked.HOST, adapter=tmp_path / str(i))
        wanted, found = answer(model, name), answer(again, name)
        assert found[0] == wanted[0] and found[1].equal(wanted[1]), label
        inputs = asked.prompt(name, QUESTION)
        with bvllm_asking(QUESTION), torch.no_grad():
            assert again(**inputs).logits.equal(model(**inputs).logits), label
        before, after = (tokenizer_of(one).frame_selector for one in (model, again))
        assert type(after) is type(before) and repr(after) == repr(before), label
        assert vars(tokenizer_of(again).config) == vars(tokenizer_of(model).config), label


def bvllm_asking(question: str) -> Any:
    from bvllm_adapters.question import asking

    return asking(question)


def test_a_scout_lies_in_its_own_folder_and_comes_from_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bvllm_adapters.weights.hub.snapshot_download", _no_network)
    scout = bvllm.RelevanceSelector.from_pretrained(tiny_clip(tmp_path / "clip"))
    model = asked.wrapped("internvl", max_tokens=9, selector=scout)
    whole, folder = tmp_path / "whole", tmp_path / "whole" / "bvllm_adapter"
    processors.processor("internvl").save_pretrained(whole)
    model.save_pretrained(whole)
    assert (folder / "selector" / "model.safetensors").is_file()
    assert (folder / "balanced_tokenizer.safetensors").stat().st_size < 1000
    (tmp_path / "clip").rename(tmp_path / "gone")
    again = bvllm.load(whole)
    with torch.no_grad():  # out of the mapped file, in which they may lie as suits no fast sum
        for weight in again.parameters():
            weight.data = weight.data.clone()
    assert answer(again, "internvl")[1].equal(answer(model, "internvl")[1])
    # Another adapter over it has no scout, whatever is left in the folder.
    bvllm.save_adapter(asked.wrapped("internvl", selector="uniform"), folder)
    assert type(tokenizer_of(bvllm.load(whole)).frame_selector).__name__ == "UniformSelector"
    bvllm.save_adapter(model, folder)
    (folder / "selector" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="selector: got no files of the selector's scout"):
        bvllm.load(whole)


def _no_network(*args: Any, **kwargs: Any) -> None:
    raise AssertionError(f"asked the hub for {args}")


@pytest.mark.parametrize("scout", ["some/hub-id", "/elsewhere", {"a": 1}])
def test_a_file_names_no_scout(scout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bvllm_adapters.weights.hub.snapshot_download", _no_network)
    bvllm.save_adapter(asked.wrapped("internvl", selector="uniform"), tmp_path)
    file = tmp_path / "balanced_tokenizer.json"
    values = json.loads(file.read_text())
    for selector in ("relevance", "top-k", "coverage"):
        file.write_text(
            json.dumps(values | {"selector": selector, "selector_settings": {"scout": scout}})
        )
        with pytest.raises(CheckpointError, match=r"selector_settings: got \['scout'\]"):
            bvllm.wrap(processors.model("internvl"), host=asked.HOST, adapter=tmp_path)


class First(torch.nn.Module):
    """The first frames."""

    sees = False

    def forward(
        self, cls: Tensor, question: str, *, seconds: Tensor, num_frames: int, generator: Any = None
    ) -> Selection:
        return Selection.whole(torch.arange(min(num_frames, len(cls))), len(cls))


def test_a_selector_of_ones_own_is_given_once_more(tmp_path: Path) -> None:
    model = asked.wrapped("qwen2_5_vl", max_tokens=20, num_frames=2, selector=First())
    bvllm.save_adapter(model, tmp_path)

    def load(**how: Any) -> Any:
        return bvllm.wrap(processors.model("qwen2_5_vl"), host=asked.HOST, adapter=tmp_path, **how)

    with pytest.raises(CheckpointError, match="selector: got 'custom', which is one's own"):
        load()
    again = load(selector=First())
    assert answer(again, "qwen2_5_vl")[1].equal(answer(model, "qwen2_5_vl")[1])
    bvllm.save_adapter(asked.wrapped("qwen2_5_vl", selector="uniform"), tmp_path)
    with pytest.raises(ValueError, match="selector: got it beside adapter, which has its own"):
        load(selector=First())


def test_saved_features_know_by_what_they_were_seen(tmp_path: Path) -> None:
    how = {"processor": processors.processor("internvl")}
    scouts = [tiny_clip(tmp_path / str(i)) for i in range(2)]
    other = bvllm.RelevanceSelector.from_pretrained(scouts[1])
    with torch.no_grad():
        next(other.scout.parameters()).mul_(1.5)
    selectors = ["coverage", "uniform", CoverageSelector(by="tower"),
                 bvllm.RelevanceSelector.from_pretrained(scouts[0]), other]  # fmt: skip
    models = [asked.wrapped("internvl", max_tokens=9, selector=each) for each in selectors]
    for i, model in enumerate(models):
        bvllm.open_video(model, asked.FRAMES, **how).save(tmp_path / f"{i}.safetensors")
        for j, another in enumerate(models):
            if i == j:
                bvllm.load_video(another, tmp_path / f"{i}.safetensors", asked.FRAMES, **how)
                continue
            with pytest.raises(CheckpointError, match="selector"):
                bvllm.load_video(another, tmp_path / f"{i}.safetensors", asked.FRAMES, **how)


def test_features_for_a_sampler_are_not_those_of_a_model_without(tmp_path: Path) -> None:
    how = {"processor": processors.processor("qwen3_vl")}
    own = {"max_tokens": 9, "selector": "learned", "num_frames": 2, "qformer_width": 16,
           "qformer_layers": 1, "qformer_heads": 2, "tokens_per_frame": 2}  # fmt: skip
    model = asked.wrapped("qwen3_vl", **own)
    sampled = asked.wrapped("qwen3_vl", sampler="qformer", projection="mlp", **own)
    bvllm.open_video(model, asked.FRAMES, **how).save(tmp_path / "seen.safetensors")
    with pytest.raises(CheckpointError, match="stages"):
        bvllm.load_video(sampled, tmp_path / "seen.safetensors", asked.FRAMES, **how)
