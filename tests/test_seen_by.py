"""What was seen knows what made it: weights, scout, settings, processor, and the frames."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bvllm_adapters as bvllm
from bvllm_adapters import Encoding
from bvllm_adapters.evaluation.needle import DEMO_VIDEO
from bvllm_adapters.seeing.fingerprint import weights_stamp
from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_qwen2 import HOST

AGAIN = Encoding(patches="again")
SCOUT = bvllm.ScoutConfig(
    image_size=32, width=64, architecture="vit_tiny_patch16_224",
    model_args={"img_size": 32, "embed_dim": 64, "depth": 1, "num_heads": 2},
)  # fmt: skip


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return HOST.demo()


@pytest.fixture
def processor(demo: tuple[Any, Any]) -> Any:
    return copy.deepcopy(demo[1])


@pytest.fixture(scope="module")
def scouted(demo: tuple[Any, Any]) -> Any:
    model = copy.deepcopy(demo[0])
    torch.manual_seed(0)
    own = model.balanced_tokenizer.config
    return bvllm.wrap(model, config=replace(own, scout=SCOUT)).eval()


@pytest.fixture
def model(scouted: Any) -> Any:
    return copy.deepcopy(scouted)


@pytest.fixture(scope="module")
def frames() -> Any:
    return bvllm.read_video(DEMO_VIDEO, end=6.0).frames


def add(weights: Any, value: float = 1e-3) -> None:
    with torch.no_grad():
        weights.add_(value)


def add_to_data(weights: Any) -> None:
    weights.data.mul_(1.5)


def put_other(weights: Any) -> None:
    weights.data = weights.data + 1


def write_one(weights: Any) -> None:
    with torch.no_grad():
        weights.view(-1)[1] += 1


PARTS: dict[str, Callable[[Any], nn.Module]] = {
    "tower": lambda model: model.vision_tower,
    "scout": lambda model: model.balanced_tokenizer.scout,
}


@pytest.mark.parametrize("change", [add, add_to_data, put_other, write_one])
@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_written_to(
    model: Any, processor: Any, frames: Any, part: str, change: Any
) -> None:
    opened = bvllm.open_video(model, frames, processor=processor)
    opened.ask("?", max_new_tokens=1)
    add(model.balanced_tokenizer.spatial_sampler.queries)  # which no feature depends on
    assert opened.ask("?", max_new_tokens=1)
    change(max(PARTS[part](model).parameters(), key=torch.numel))
    message = f"model: got other weights of the {part}, wanted those that saw the video; open it"
    with pytest.raises(ValueError, match=message):
        opened.ask("?")
    assert bvllm.open_video(model, frames, processor=processor).ask("?", max_new_tokens=1)


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_loaded(
    model: Any, processor: Any, frames: Any, tmp_path: Path, part: str
) -> None:
    file = tmp_path / "seen.safetensors"
    opened = bvllm.open_video(model, frames, processor=processor)
    opened.save(file)
    bvllm.load_video(model, file, frames, processor=processor)
    module = PARTS[part](model)
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
    with pytest.raises(ValueError, match=f"model: got other weights of the {part}"):
        opened.save(file)
    with pytest.raises(CheckpointError, match=f"of weights of the {part} .* wanted weights of the"):
        bvllm.load_video(model, file, frames, processor=processor)


def test_a_stream_of_which_nothing_was_seen_may_begin_with_other_weights(
    demo: tuple[Any, Any], processor: Any, frames: Any
) -> None:
    model = copy.deepcopy(demo[0])
    stream = bvllm.open_video(model, processor=processor)
    add(next(model.vision_tower.parameters()))
    stream.push(frames[:2])
    assert stream.ask("?", max_new_tokens=1)
    add(next(model.vision_tower.parameters()))
    with pytest.raises(ValueError, match="model: got other weights of the tower"):
        stream.push(frames[2:])


def test_a_stream_is_seen_by_one_processor(
    demo: tuple[Any, Any], processor: Any, frames: Any
) -> None:
    stream = bvllm.open_video(demo[0], processor=processor, encoding=Encoding(chunk_size=3))
    stream.push(frames[:1])
    features = stream.features
    before = processor.image_processor.image_mean
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="processor: got pixels of the processor"):
        stream.push(frames[1:4])  # a chunk, which would be looked at
    processor.image_processor.image_mean = before
    assert len(stream) == 1 and torch.equal(stream.features.cls, features.cls)
    stream.push(frames[1:4])
    assert len(stream) == 4


SETTINGS: dict[str, Any] = {
    "image_mean": [0.1, 0.4, 0.4],
    "image_std": [0.3, 0.3, 0.31],
    "resample": Image.Resampling.NEAREST,
    "do_normalize": False,
    "do_rescale": False,
    "rescale_factor": 1 / 256,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_processor_that_change(
    demo: tuple[Any, Any], processor: Any, frames: Any, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "seen.safetensors"
    opened = bvllm.open_video(demo[0], frames, processor=processor)
    opened.save(file)
    before = getattr(processor.image_processor, name)
    setattr(processor.image_processor, name, SETTINGS[name])
    with pytest.raises(ValueError, match=r"processor: got pixels of the processor .*, wanted "):
        opened.ask("?")
    with pytest.raises(CheckpointError, match=r"file: got .* of pixels of the processor .* wanted"):
        bvllm.load_video(demo[0], file, processor=processor)
    setattr(processor.image_processor, name, before)
    processor.chat_template = "{{ 1 }}"  # which no pixel depends on
    assert len(bvllm.load_video(demo[0], file, processor=processor)) == len(opened)
    assert opened.features.num_frames == len(frames)


@pytest.mark.parametrize("how", ["crop", "size"])
def test_what_the_processor_cuts_out(demo: tuple[Any, Any], frames: Any, how: str) -> None:
    processor = copy.deepcopy(demo[1])
    images = processor.image_processor
    opened = bvllm.open_video(demo[0], frames, processor=processor)
    side = images.crop_size["height"]
    if how == "crop":
        images.size, images.do_center_crop = {"shortest_edge": side}, True
    else:
        images.size, images.do_center_crop = {"height": side, "width": side + 16}, True
    with pytest.raises(ValueError, match="processor: got pixels of the processor"):
        opened.ask("?")


def test_a_file_of_before_processors_were_noted(
    demo: tuple[Any, Any], processor: Any, frames: Any, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = tmp_path / "seen.safetensors"
    bvllm.open_video(demo[0], frames, processor=processor).save(file)
    with safe_open(file, "pt") as opened:
        metadata = {k: v for k, v in opened.metadata().items() if k != "digest"}
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    save_file(tensors, file, metadata)
    with pytest.raises(CheckpointError, match=r"is of an earlier version, .* see the video again"):
        bvllm.load_video(demo[0], file, processor=processor)


def test_a_stamp_is_of_what_a_module_computes_with() -> None:
    assert weights_stamp(None) == () == weights_stamp(None)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module.register_buffer("nothing", torch.empty(0))
    stamp = weights_stamp(module)
    assert weights_stamp(module) == stamp
    module.double().float()
    assert weights_stamp(module) == stamp
    module(torch.ones(2, 3))  # which changes the running mean
    assert weights_stamp(module) != stamp
    assert weights_stamp(module.to("meta")) == ([], [])


def test_frames_in_memory_that_have_changed(
    demo: tuple[Any, Any], processor: Any, frames: Any, tmp_path: Path
) -> None:
    """They are not copied, since there may be many; but those that are looked at again, or saved,
    must be those that were seen."""
    model = demo[0]
    given = frames.copy()
    pictures = [Image.fromarray(frame) for frame in given]
    video = bvllm.read_video(given.copy())
    opened = [
        bvllm.open_video(model, one, processor=processor, encoding=AGAIN)
        for one in (given, pictures, video)
    ]
    kept = bvllm.open_video(model, given, processor=processor)
    answers = {str(one.ask("what?", max_new_tokens=4)) for one in opened}
    assert len(answers) == 1
    opened[0].save(tmp_path / "seen.safetensors")
    loaded = bvllm.load_video(
        model, tmp_path / "seen.safetensors", given, processor=processor, encoding=AGAIN
    )
    given[:], video.frames[:] = 0, 0
    for picture in pictures:
        picture.paste((0, 0, 0), (0, 0, *picture.size))
    for one in (*opened, loaded):
        one.encoded._again.cache.clear()
        with pytest.raises(bvllm.VideoError, match="has changed, or gone, since it was seen"):
            one.ask("what?")
        with pytest.raises(bvllm.VideoError, match="has changed, or gone, since it was seen"):
            one.save(tmp_path / "again.safetensors")
    assert str(kept.ask("what?", max_new_tokens=4)) in answers  # which needs them no more
    kept.save(tmp_path / "kept.safetensors")
    with pytest.raises(ValueError, match="wanted array as it was seen"):
        bvllm.load_video(model, tmp_path / "kept.safetensors", given, processor=processor)
    assert bvllm.load_video(model, tmp_path / "kept.safetensors", processor=processor).ask("?")


def test_a_list_of_pictures_is_taken_as_it_is(
    demo: tuple[Any, Any], processor: Any, frames: Any
) -> None:
    pictures = [Image.fromarray(frame) for frame in frames]
    opened = bvllm.open_video(demo[0], pictures, processor=processor, encoding=AGAIN)
    before = str(opened.ask("what?", max_new_tokens=4))
    opened.encoded._again.cache.clear()
    pictures.clear()
    assert str(opened.ask("what?", max_new_tokens=4)) == before


@pytest.mark.parametrize("scout", [False, True])
def test_a_stream_owns_what_was_pushed(
    demo: tuple[Any, Any], model: Any, processor: Any, frames: Any, scout: bool
) -> None:
    """One buffer for all frames, as a camera has it; a picture that is drawn upon; a list."""
    seer = model if scout else demo[0]
    buffer = np.empty_like(frames[0])
    streams = [bvllm.open_video(seer, processor=processor) for _ in range(4)]
    canvas, sheet = Image.fromarray(frames[0]), [Image.fromarray(frames[0])]
    for frame in frames:
        buffer[:] = frame
        canvas.paste(Image.fromarray(frame))
        sheet[0].paste(Image.fromarray(frame))
        for stream, given in zip(streams, (frame, buffer, canvas, sheet), strict=True):
            stream.push(given)
    buffer[:] = 0
    whole, *others = [stream.features for stream in streams]
    rows = torch.arange(len(frames))
    for features in others:
        assert torch.equal(features.cls, whole.cls)
        assert torch.equal(features.patches(rows), whole.patches(rows))  # type: ignore[operator]
