"""What must hold of every host: how a video is encoded, and with which others it is asked about,
makes no difference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tiny_hosts import TINY_HOSTS, llama_vid, native, pair_of, videollama2, wrap_small

import bvllm_adapters as bvllm
from bvllm_adapters import Encoding
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.language_model import CACHE_NAMES
from bvllm_adapters.weights.checkpoint import CheckpointError

BUNNY = Path(__file__).parents[2] / "examples" / "big_buck_bunny.mp4"
QUESTIONS = ["What is it?", "", "Who is behind the large tree, and what are they doing there?"]
NEW: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module", params=TINY_HOSTS)
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    model, processor = request.param(tmp_path_factory.mktemp("host"))
    return wrap_small(model), processor


def tokens_of(opened: bvllm.OpenVideo, question: str) -> Any:
    with torch.inference_mode():
        tokenizer: Any = opened.model.balanced_tokenizer
        return tokenizer([opened.features], [question])[0]


def test_a_trainer_gathers_no_cache_whatever_it_is_called(host: tuple[Any, Any]) -> None:
    assert set(CACHE_NAMES) <= set(host[0].config.keys_to_ignore_at_inference)


def test_two_passes_are_one(host: tuple[Any, Any]) -> None:
    model, processor = host
    kept, again = (
        bvllm.open_video(model, BUNNY, processor=processor, fps=4.0, encoding=Encoding(patches=how))
        for how in ("keep", "again")
    )
    for question in QUESTIONS:
        one, two = tokens_of(kept, question), tokens_of(again, question)
        assert torch.equal(one.frame, two.frame)
        torch.testing.assert_close(two.tokens, one.tokens, atol=1e-5, rtol=0)
    held = again.features.cls.untyped_storage().nbytes()
    assert held == again.features.cls.nbytes  # and not all that the tower made
    assert kept.tower_passes == len(kept) < again.tower_passes <= len(kept) + 4 * len(QUESTIONS)


def test_a_batch_is_one_at_a_time(host: tuple[Any, Any]) -> None:
    model, processor = host
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    videos = [
        bvllm.open_video(model, BUNNY, processor=processor),
        bvllm.open_video(model, picture, processor=processor),
        bvllm.open_video(model, BUNNY, processor=processor, end=3.0),
    ]
    items = [(video, question) for question in QUESTIONS for video in videos]
    alone = [video.ask(question, **NEW) for video, question in items]
    batched = bvllm.ask_batch(items, **NEW)
    assert [answer.text for answer in batched] == [answer.text for answer in alone]
    assert [answer.trace.frames for answer in batched] == [a.trace.frames for a in alone]
    assert len({answer.text for answer in alone}) > 1


def test_pixels_in_memory_leave_no_more_than_features(host: tuple[Any, Any]) -> None:
    from bvllm_adapters.seeing.encoding import encode_pixels

    model, processor = host
    served_by = host_of(model)
    pixels = served_by.pixels(processor, bvllm.read_video(BUNNY).frames)
    cls = encode_pixels(pair_of(served_by, model), pixels, None, model.balanced_tokenizer).cls
    assert cls.untyped_storage().nbytes() == cls.nbytes


def test_asking_is_what_the_models_own_forward_does(host: tuple[Any, Any]) -> None:
    """The features of `open_video` are those that pixels in memory give."""
    from bvllm_adapters.seeing.encoding import encode_pixels

    model, processor = host
    served_by = host_of(model)
    video = bvllm.read_video(BUNNY)
    opened = bvllm.open_video(model, video, processor=processor)
    pixels = served_by.pixels(processor, video.frames)
    whole = encode_pixels(
        pair_of(served_by, model),
        pixels,
        torch.from_numpy(video.seconds),
        model.balanced_tokenizer,
    )
    torch.testing.assert_close(opened.features.cls, whole.cls, atol=1e-5, rtol=0)
    frames = torch.tensor([0, 3, 5])
    assert isinstance(whole.patches, torch.Tensor)
    torch.testing.assert_close(
        opened.features.patches(frames), whole.patches[frames], atol=1e-5, rtol=0
    )


def test_the_tower_is_a_part_of_the_model(host: tuple[Any, Any]) -> None:
    model, _ = host
    tower = host_of(model).tower(model)
    assert any(module is tower for module in model.modules())
    assert sum(p.numel() for p in tower.parameters()) > 0


@pytest.mark.parametrize("make", [native, videollama2])
def test_a_host_whose_weights_are_offloaded_sees_and_answers(make: Any, tmp_path: Path) -> None:
    from accelerate import cpu_offload

    said, state = [], None
    for offloaded in (False, True):
        folder = tmp_path / str(offloaded)
        folder.mkdir()
        torch.manual_seed(0)
        model, processor = make(folder)
        if state is None:
            state = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(state)
        if offloaded:
            cpu_offload(model, execution_device="cpu")
            assert next(host_of(model).tower(model).parameters()).is_meta
        wrap_small(model)
        opened = bvllm.open_video(model, BUNNY, processor=processor)
        opened.save(folder / "seen.safetensors")
        loaded = bvllm.load_video(model, folder / "seen.safetensors", processor=processor)
        assert torch.equal(
            tokens_of(opened, QUESTIONS[0]).tokens, tokens_of(loaded, QUESTIONS[0]).tokens
        )
        if offloaded and Version(transformers.__version__) < Version("5.23"):
            pytest.skip("older transformers, as 5.0, generate where the offloaded weights are")
        said += [opened.ask(QUESTIONS[0], **NEW).text, loaded.ask(QUESTIONS[0], **NEW).text]
    assert len(set(said)) == 1


def test_an_offloaded_eva_is_refused(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    model, processor = llama_vid(tmp_path)
    cpu_offload(model, execution_device="cpu")
    wrap_small(model)
    with pytest.raises(ValueError, match="vision tower: got offloaded weights of an EVA"):
        bvllm.open_video(model, BUNNY, processor=processor)


def told(answers: list[bvllm.Answer]) -> list[Any]:
    return [(answer.text, answer.trace.frames) for answer in answers]


def test_a_default_dtype_of_float64_changes_no_answer(
    host: tuple[Any, Any], tmp_path: Path
) -> None:
    model, processor = host
    bvllm.save_adapter(model, tmp_path)
    opened = bvllm.open_video(model, BUNNY, processor=processor)
    wanted = told(opened.ask(QUESTIONS, **NEW))
    torch.set_default_dtype(torch.float64)
    try:
        assert told(opened.ask(QUESTIONS, **NEW)) == wanted
        other = bvllm.wrap(bvllm.unwrap(copy.deepcopy(model)), adapter=tmp_path)
        fresh = bvllm.open_video(other, BUNNY, processor=processor)
        assert told(fresh.ask(QUESTIONS, **NEW)) == wanted
        assert told(bvllm.ask_batch([(fresh, question) for question in QUESTIONS], **NEW)) == wanted
        stream = bvllm.open_video(other, processor=processor)
        stream.push(bvllm.read_video(BUNNY).frames)
        assert told(stream.ask(QUESTIONS, **NEW)) == wanted
        stream.save(tmp_path / "seen.safetensors")
        loaded = bvllm.load_video(other, tmp_path / "seen.safetensors", processor=processor)
        assert told(loaded.ask(QUESTIONS, **NEW)) == wanted
    finally:
        torch.set_default_dtype(torch.float32)


def test_autocast_chooses_the_same_frames(host: tuple[Any, Any]) -> None:
    """Of features that were made without it."""
    model, processor = host
    opened = bvllm.open_video(model, BUNNY, processor=processor, fps=4.0)
    for question in QUESTIONS:
        plain = tokens_of(opened, question)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            other = tokens_of(opened, question)
        assert torch.equal(plain.selection.weights, other.selection.weights)
        assert torch.equal(plain.selection.size, other.selection.size)
        assert torch.equal(plain.frame, other.frame) and torch.equal(plain.slot, other.slot)


def test_another_setting_of_the_processor_is_noticed(host: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = host[0], copy.deepcopy(host[1])
    file = tmp_path / "seen.safetensors"
    opened = bvllm.open_video(model, BUNNY, processor=processor)
    opened.save(file)
    before = processor.image_processor.image_mean
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="processor: got pixels of the processor"):
        opened.ask("What is it?", **NEW)
    with pytest.raises(CheckpointError, match="of pixels of the processor"):
        bvllm.load_video(model, file, processor=processor)
    processor.image_processor.image_mean = before
    assert opened.ask("What is it?", **NEW)
    assert len(bvllm.load_video(model, file, processor=processor)) == len(opened)


def test_weights_that_are_written_to_are_noticed(host: tuple[Any, Any]) -> None:
    model, processor = copy.deepcopy(host[0]), host[1]
    opened = bvllm.open_video(model, BUNNY, processor=processor)
    with torch.no_grad():
        next(host_of(model).tower(model).parameters()).mul_(1.01)
    with pytest.raises(ValueError, match="model: got other weights of the tower"):
        opened.ask("What is it?", **NEW)


def test_a_stream_owns_what_was_pushed(host: tuple[Any, Any]) -> None:
    model, processor = host
    frames = bvllm.read_video(BUNNY).frames
    one, other = (bvllm.open_video(model, processor=processor) for _ in range(2))
    buffer = np.empty_like(frames[0])
    for frame in frames:
        one.push(frame)
        buffer[:] = frame
        other.push(buffer)
    buffer[:] = 0
    assert torch.equal(one.features.cls, other.features.cls)
    assert torch.equal(tokens_of(one, "?").tokens, tokens_of(other, "?").tokens)
