"""Frames by a question: the scout's own numbers, read from files that are not trusted."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_scouts import SCOUTS, tiny_clip
from torch import Tensor

from bvllm_adapters.selectors.names import named_selector
from bvllm_adapters.selectors.relevance import RelevanceSelector
from bvllm_adapters.selectors.scores import min_max, smoothed
from bvllm_adapters.weights.json_file import CheckpointError

QUESTION = "What is the man in red doing?"


@pytest.fixture(scope="module", params=SCOUTS)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = SCOUTS[request.param](tmp_path_factory.mktemp(request.param))
    return found


@pytest.fixture(scope="module")
def selector(folder: Path) -> RelevanceSelector:
    return RelevanceSelector.from_pretrained(folder)


def pictures(count: int, height: int = 48, width: int = 70) -> np.ndarray[Any, Any]:
    """(k, H, W, 3) smooth pictures that differ."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (count, 5, 7, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((width, height), 2)) for one in small])


def frames(count: int, **size: int) -> Tensor:
    return torch.from_numpy(pictures(count, **size)).permute(0, 3, 1, 2).float() / 255


def choose(selector: Any, cls: Tensor, question: str, num_frames: int = 5, **more: Any) -> Any:
    return selector(
        cls, question, seconds=torch.arange(len(cls)).double(), num_frames=num_frames, **more
    )


def published(folder: Path) -> tuple[Any, Any]:
    """Model and processor as transformers' own loading has them."""
    return transformers.AutoModel.from_pretrained(folder).eval(), transformers.AutoTokenizer


def feature(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(found.float(), dim=-1)


def test_frames_are_seen_as_transformers_sees_them(
    folder: Path, selector: RelevanceSelector
) -> None:
    model, _ = published(folder)
    for size in ({}, {"height": 90, "width": 33}, {"height": 20, "width": 20}):
        images = [Image.fromarray(one) for one in pictures(4, **size)]
        pixels = selector.files.image_processor(images, return_tensors="pt")["pixel_values"]
        ours = selector.numbers(frames(4, **size))
        assert ours.shape == pixels.shape
        assert float((ours - pixels).abs().max()) < 0.03  # two levels of 255
        with torch.no_grad():
            wanted = feature(model.get_image_features(pixel_values=pixels))
        seen = selector.see(frames(4, **size))
        assert seen.dtype == torch.float32
        assert float((seen * wanted).sum(1).min()) > 0.999


def test_the_question_is_read_as_transformers_reads_it(
    folder: Path, selector: RelevanceSelector
) -> None:
    model, _ = published(folder)
    text = QUESTION if selector.family == "CLIP" else QUESTION.lower()
    how = {} if selector.family == "CLIP" else {"padding": "max_length", "max_length": 64}
    ids = selector.tokenizer([text], return_tensors="pt", **how)["input_ids"]
    if selector.family == "Siglip":
        assert ids.shape == (1, 64)
    with torch.no_grad():
        asked = feature(model.get_text_features(input_ids=ids))
    assert torch.allclose(selector.embed(selector.read(QUESTION)), asked, atol=1e-6)
    cls = selector.see(frames(30))
    seconds = torch.arange(30).double()
    wanted = min_max(smoothed(cls @ asked[0], seconds, 3.0))
    selection = choose(selector, cls, QUESTION)
    assert torch.allclose(selection.scores, wanted, atol=1e-5)
    assert selection.is_whole and len(selection) == 5 and selection.note is None


def test_scores_do_not_depend_on_the_batch(selector: RelevanceSelector) -> None:
    whole = selector.see(frames(12))
    parts = torch.cat([selector.see(part) for part in frames(12).split(5)])
    assert torch.allclose(whole, parts, atol=1e-6)
    one, other = (choose(selector, cls, QUESTION) for cls in (whole, parts))
    assert torch.allclose(one.scores, other.scores, atol=1e-5)
    assert torch.equal(one.frame, other.frame)


def test_another_question_is_another_order(selector: RelevanceSelector) -> None:
    cls = selector.see(frames(30))
    one = choose(selector, cls, QUESTION).scores
    assert not torch.allclose(one, choose(selector, cls, "Where is the banana?").scores, atol=0.05)


def test_options_and_instructions_are_not_read(selector: RelevanceSelector) -> None:
    cls = selector.see(frames(30))
    prompt = f"{QUESTION}\nA. a dog\nB. a clock\nAnswer with the option's letter."
    assert torch.equal(choose(selector, cls, QUESTION).scores, choose(selector, cls, prompt).scores)
    as_it_is = choose(selector, cls, QUESTION, query=prompt).scores
    assert not torch.equal(choose(selector, cls, QUESTION).scores, as_it_is)
    assert torch.equal(
        choose(selector, cls, "", query=QUESTION).scores, choose(selector, cls, QUESTION).scores
    )


def test_what_is_too_long_is_read_in_parts_and_said(selector: RelevanceSelector) -> None:
    sentences = ["The man in red is doing what with a dog", "before a banana is taped to the wall"]
    long = ". ".join(sentences * 12) + "?"
    cls = selector.see(frames(30))
    parts = selector.read(long)
    assert len(parts) > 1
    assert all(len(selector.tokenizer(part)["input_ids"]) <= selector.limit for part in parts)
    assert "".join("".join(parts).split()).lower() == "".join(long.split()).lower()
    selection = choose(selector, cls, "", query=long)
    assert f"reads {selector.limit} tokens at once" in selection.note
    assert f"{len(parts)} parts" in selection.note
    mean = selector.embed(parts).mean(dim=0)
    wanted = min_max(smoothed(cls @ mean, torch.arange(30), 3.0))
    assert torch.allclose(selection.scores, wanted, atol=1e-5)
    assert len(choose(selector, cls, "", query="x" * 5000)) == 5


def test_an_empty_question_is_answered_by_novelty(selector: RelevanceSelector) -> None:
    cls = selector.see(frames(30))
    blind = named_selector("coverage", by="tower")
    assert torch.equal(choose(selector, cls, " \n").scores, choose(blind, cls, "").scores)


def test_novelty_can_count_beside_relevance(folder: Path, selector: RelevanceSelector) -> None:
    cls = selector.see(frames(30))
    both = RelevanceSelector(selector.files, novelty=0.5)
    new = choose(selector, cls, "").scores
    wanted = min_max(choose(selector, cls, QUESTION).scores + 0.5 * new)
    assert torch.allclose(choose(both, cls, QUESTION).scores, wanted, atol=1e-5)


def test_what_is_saved_is_read_again_copied_and_pickled(
    selector: RelevanceSelector, tmp_path: Path
) -> None:
    selector.save_pretrained(tmp_path / "saved")
    cls = selector.see(frames(12))
    wanted = choose(selector, cls, QUESTION).scores
    others = [
        RelevanceSelector.from_pretrained(tmp_path / "saved"),
        copy.deepcopy(selector),
        pickle.loads(pickle.dumps(selector)),
    ]
    for other in others:
        assert torch.equal(other.see(frames(12)), cls)
        assert torch.equal(choose(other, cls, QUESTION).scores, wanted)


def test_it_stays_frozen_and_in_evaluation(selector: RelevanceSelector) -> None:
    selector.train()
    assert not any(module.training for module in selector.modules())
    assert not any(weight.requires_grad for weight in selector.parameters())
    assert not selector.see(frames(2)).requires_grad


def test_halves_and_autocast(folder: Path, selector: RelevanceSelector) -> None:
    halves = RelevanceSelector.from_pretrained(folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in halves.parameters()} == {torch.bfloat16}
    cls = selector.see(frames(12))
    seen = halves.see(frames(12))
    assert seen.dtype == torch.float32 and float((seen * cls).sum(1).min()) > 0.99
    assert choose(halves, seen, QUESTION).scores.dtype == torch.float32
    wanted = choose(selector, cls, QUESTION).scores
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selector.see(frames(12)), cls)
        assert torch.equal(choose(selector, cls, QUESTION).scores, wanted)


@pytest.mark.parametrize("name", ["relevance", "top-k", "best-of-bins", "inverse-transform"])
def test_baselines_choose_by_relevance_too(
    name: str, folder: Path, selector: RelevanceSelector
) -> None:
    cls = selector.see(frames(40))
    for other in (named_selector(name, folder), named_selector(name, selector)):
        selection = choose(other, cls, QUESTION, 4)
        assert torch.equal(selection.scores, choose(selector, cls, QUESTION).scores)
        if name == "top-k":
            assert set(selection.frame.tolist()) == set(selection.scores.topk(4).indices.tolist())
        if name == "best-of-bins":
            assert [frame // 10 for frame in selection.frame.tolist()] == [0, 1, 2, 3]


def test_coverage_can_see_by_a_scout(folder: Path, selector: RelevanceSelector) -> None:
    for scout in (folder, selector):
        blind: Any = named_selector("coverage", scout)
        cls = blind.see(frames(20))
        assert blind.sees and torch.equal(cls, selector.see(frames(20)))
        assert torch.equal(choose(blind, cls, QUESTION).scores, choose(selector, cls, "").scores)


def test_wrong_arguments_are_named(folder: Path, selector: RelevanceSelector) -> None:
    cls = selector.see(frames(5))
    with pytest.raises(ValueError, match=r"cls: got width 7, wanted \d+ as the scout"):
        choose(selector, torch.randn(5, 7), QUESTION)
    with pytest.raises(TypeError, match="question: got int, wanted a string"):
        choose(selector, cls, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="query: got list, wanted a string"):
        choose(selector, cls, "", query=["a"])
    for settings, message in (
        ({"novelty": -1}, "novelty: got -1"),
        ({"novelty_seconds": 0}, "novelty_seconds: got 0"),
        ({"smooth_seconds": -1}, "smooth_seconds: got -1"),
        ({"diversity": 2}, "diversity: got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            RelevanceSelector(selector.files, **settings)
    with pytest.raises(
        ValueError, match=r"scout: got .*, wanted None, as uniform looks at no frame"
    ):
        named_selector("uniform", folder)
    with pytest.raises(FileNotFoundError):
        RelevanceSelector.from_pretrained("./nowhere")


def test_a_processor_saved_with_its_tokenizer_is_found(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.unlink()
    (other / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    RelevanceSelector.from_pretrained(other)
    (other / "processor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="got no image_processor"):
        RelevanceSelector.from_pretrained(other)


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        for key, value in changes.items():
            part, *path = key.split("__")
            if path:
                values.setdefault(part, {})[path[0]] = value
            else:
                values[part] = value
        (folder / file).write_text(json.dumps(values))

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("config.json", model_type="siglip2"), "model_type: got 'siglip2', wanted one of"),
        (edit("config.json", model_type="llama"), "model_type: got 'llama'"),
        (edit("config.json", model_type=["clip"]), "model_type: got"),
        (edit("config.json", text_config__num_hidden_layers=10**9), "num_hidden_layers"),
        (edit("config.json", vision_config__image_size=10**6), "image_size"),
        (edit("config.json", vision_config__hidden_size=40), "keys do not fit"),
        (edit("config.json", text_config="nothing"), "config.json"),
        (edit("config.json", attn_implementation="someone/kernel"), "attn_implementation"),
        (edit("config.json", text_config__num_hidden_layers=1), "keys do not fit"),
        (edit("preprocessor_config.json", resample=4), "resample: got 4"),
        (edit("preprocessor_config.json", crop_size={"height": 16, "width": 16}), "wanted squares"),
        (edit("preprocessor_config.json", size={"shortest_edge": 16}), "wanted squares of 32"),
        (edit("preprocessor_config.json", image_mean=None), "image_mean"),
        (edit("tokenizer_config.json", tokenizer_class="LlamaTokenizer"), "tokenizer_class"),
        (edit("tokenizer_config.json", tokenizer_class="builtins.eval"), "tokenizer_class"),
        (edit("tokenizer_config.json", tokenizer_class=["CLIPTokenizer"]), "tokenizer_class"),
        (edit("tokenizer_config.json", bos_token=7), "tokenizer"),
        (edit("tokenizer_config.json", bos_token="none"), "got the id 514, wanted less than 514"),
        (edit("config.json", text_config__layer_norm_eps=None), "eps"),
        (edit("config.json", text_config__eos_token_id=None), "scout: "),
        (pickled, "wanted weights as model"),
        (cut("config.json"), "cannot be read"),
        (cut("model.safetensors"), "cannot be read"),
        (cut("tokenizer.json"), "tokenizer"),
        (cut("tokenizer_config.json"), "cannot be read"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config"),
    ],
)
def test_files_that_cannot_be_read_are_told(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = tiny_clip(tmp_path / "scout")
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        RelevanceSelector.from_pretrained(folder)


def test_a_tokenizer_file_names_no_other_files(tmp_path: Path) -> None:
    """What its settings say of files, code or a backend is not handed to transformers."""
    folder = tiny_clip(tmp_path / "scout")
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text((folder / "tokenizer.json").read_text().replace("</w>", "</x>"))
    wanted = RelevanceSelector.from_pretrained(folder).tokenizer("what")["input_ids"]
    edit(
        "tokenizer_config.json",
        tokenizer_file=str(elsewhere),
        vocab_file=str(elsewhere),
        gguf_file=str(elsewhere),
        auto_map={"AutoTokenizer": ["code.py", None]},
        init_inputs=[1, 2],
        model_specific="x",
    )(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"tokenizer_file": str(elsewhere)}))
    assert RelevanceSelector.from_pretrained(folder).tokenizer("what")["input_ids"] == wanted


def test_a_tokenizer_of_another_scout_is_told(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "scout")
    values = json.loads((folder / "tokenizer.json").read_text())
    words = values["model"]["vocab"]
    words["z</w>"], words["<|endoftext|>"] = 10_000, words["z</w>"]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    selector = RelevanceSelector.from_pretrained(folder)
    with pytest.raises(ValueError, match="tokenizer: got the id 10000, wanted less than"):
        selector.read("z")
    words["t</w>"], words["<|endoftext|>"] = 10_001, words["t</w>"]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="got the id 10001"):
        RelevanceSelector.from_pretrained(folder)


def test_a_short_limit_is_the_scouts_own(tmp_path: Path) -> None:
    selector = RelevanceSelector.from_pretrained(tiny_clip(tmp_path / "scout", limit=20))
    assert selector.limit == 20 and len(selector.read("what is the man doing there")) > 1


def test_hard_edges_stay_within_black_and_white(selector: RelevanceSelector) -> None:
    """Bicubic resizing goes beyond them, where PIL stops."""
    edges = np.zeros((1, 60, 60, 3), np.uint8)
    edges[:, :, 30:] = 255
    pixels = selector.files.image_processor([Image.fromarray(edges[0])], return_tensors="pt")
    ours = selector.numbers(torch.from_numpy(edges).permute(0, 3, 1, 2) / 255)
    assert float((ours - pixels["pixel_values"]).abs().max()) < 0.03
