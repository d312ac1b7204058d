"""Saved features: damage is named, a kill leaves the old file, and they may lie among frames."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import bvllm_adapters as bvllm
from bvllm_adapters import Encoding
from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_adapters.weights.whole import aside
from bvllm_qwen2.tiny import tiny_model

AGAIN = Encoding(patches="again")
FRAMES = np.random.default_rng(0).integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return tiny_model()


@pytest.fixture(scope="module")
def saved(tiny: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of frames of which the third repeats the second, with all patches."""
    frames = FRAMES.copy()
    frames[2] = frames[1]
    file = tmp_path_factory.mktemp("features") / "seen.safetensors"
    encoding = Encoding(skip_similar=0.0)
    bvllm.open_video(tiny[0], frames, processor=tiny[1], encoding=encoding).save(file)
    return file


def parts(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:
        return {k: opened.get_tensor(k).clone() for k in opened.keys()}, opened.metadata()


def load(tiny: tuple[Any, Any], file: Path, **more: Any) -> Any:
    return bvllm.load_video(tiny[0], file, processor=tiny[1], **more)


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any, Any], Any]:
    def changed(tensors: Any, about: Any) -> Any:
        return tensors | {name: change(tensors[name])}, about

    return changed


def say(name: str, value: Any) -> Callable[[Any, Any], Any]:
    return lambda tensors, about: (tensors, about | {name: value})


def without(name: str) -> Callable[[Any, Any], Any]:
    return lambda tensors, about: (
        {k: v for k, v in tensors.items() if k != name},
        {k: v for k, v in about.items() if k != name},
    )


def first(value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def changed(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return changed


def last(value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def changed(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return changed


DAMAGE: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "negative rows": (put("rows", first(-1)), "rows: got"),
    "rows beyond": (put("rows", last(99)), "rows: got"),
    "rows that go back": (put("rows", lambda rows: rows.flip(0)), "rows: got"),
    "rows that jump": (put("rows", lambda rows: rows * 2), "rows: got"),
    "other rows": (put("rows", lambda r: torch.tensor([0, 0, 1, 2, 3, 4])), "its contents are not"),
    "float rows": (put("rows", torch.Tensor.double), r"rows: got torch.float64 \(6,\)"),
    "short rows": (put("rows", lambda rows: rows.int()), r"rows: got torch.int32 \(6,\)"),
    "few rows": (put("rows", lambda rows: rows[:-1]), "rows: got"),
    "no rows": (without("rows"), r"got tensors \['cls', 'patches', 'seconds'\], wanted"),
    "no cls": (without("cls"), "got tensors"),
    "no seconds": (without("seconds"), "got tensors"),
    "more": (lambda t, a: (t | {"more": torch.ones(2)}, a), "got tensors"),
    "NaN": (put("cls", first(float("nan"))), "cls: got nothing, NaN or inf"),
    "infinite patches": (put("patches", last(float("inf"))), "its contents are not"),
    "no patch": (put("patches", lambda patches: patches[:, :0]), "patches: got nothing"),
    "another cls": (put("cls", first(0.125)), "its contents are not those that were saved"),
    "another patch": (put("patches", last(0.125)), "its contents are not those that were saved"),
    "half": (put("cls", torch.Tensor.half), "its contents are not those that were saved"),
    "whole numbers": (put("cls", torch.Tensor.long), r"cls: got torch.int64 \(5, 64\)"),
    "narrow": (put("cls", lambda cls: cls[:, :3]), "its contents are not those that were saved"),
    "few cls": (put("cls", lambda cls: cls[:-1]), "rows: got"),
    "empty": (put("cls", lambda cls: cls[:0]), "cls: got nothing, NaN or inf"),
    "one axis": (put("cls", torch.flatten), r"cls: got torch.float32 \(320,\)"),
    "few patches": (put("patches", lambda patches: patches[1:]), "patches: got 4, wanted 5 as cls"),
    "no patches": (without("patches"), "its contents are not those that were saved"),
    "infinite time": (put("seconds", last(float("inf"))), "seconds: got nothing, NaN or inf"),
    "times that go back": (put("seconds", lambda s: s.flip(0)), "seconds: wanted 6 that increase"),
    "another time": (put("seconds", last(99.0)), "its contents are not those that were saved"),
    "few times": (put("seconds", lambda s: s[:-1]), "seconds: wanted 6 that increase"),
    "no path": (without("path"), "path: got None|its contents are not"),
    "a path that is a number": (say("path", 3), "path: got 3, wanted"),
    "a fingerprint that is a list": (say("fingerprint", []), r"fingerprint: got \[\], wanted"),
    "another fingerprint": (say("fingerprint", "frames 0"), "its contents are not"),
    "no source": (without("source"), "source: got None"),
    "an image": (say("is_image", True), "its contents are not those that were saved"),
    "an image that is a word": (say("is_image", "no"), "is_image: got 'no'"),
    "no frames": (say("frame_count", 0), "frame_count, duration: wanted"),
    "infinite duration": (say("duration", float("inf")), "frame_count, duration: wanted"),
    "duration in words": (say("duration", "long"), "duration: got 'long'"),
    "reading": (say("reading", None), "reading: got None"),
    "reading backwards": (say("reading", {"fps": -1.0}), "fps: got -1.0, wanted a finite number"),
    "reading what is unknown": (say("reading", {"speed": 1}), "unexpected keyword argument"),
    "read otherwise": (say("reading", {"fps": 2.0}), "its contents are not those that were saved"),
    "another host": (say("host", 3), "of host 3, wanted host Bvllm"),
    "no dtype": (without("dtype"), "of dtype None, wanted dtype torch.float32"),
    "no pixels": (without("pixels of the processor"), "of pixels of the processor None, wanted"),
    "odd pixels": (say("pixels of the processor", {"shape": 1}), "of pixels of the processor"),
    "a list": (lambda t, a: (t, [a]), "about: got list, wanted an object"),
    "deep": (lambda t, a: (t, "[" * 10**5), "about is no JSON"),
    "cut off": (lambda t, a: (t, json.dumps(a)[:-5]), "about is no JSON"),
    "nothing": (lambda t, a: (t, ""), "about is no JSON"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(
    tiny: tuple[Any, Any], saved: Path, tmp_path: Path, change: Any, message: str
) -> None:
    tensors, metadata = parts(saved)
    tensors, about = change(tensors, json.loads(metadata["about"]))
    text = about if isinstance(about, str) else json.dumps(about)
    file = tmp_path / "damaged.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata | {"about": text})
    with pytest.raises(CheckpointError, match=rf"damaged.safetensors.*({message})"):
        load(tiny, file)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_and_no_lost_byte_goes_unseen(
    tiny: tuple[Any, Any], saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(saved.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "zeros"]))
    if kind == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[place:]
    else:
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    if content == saved.read_bytes():
        return
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(content)
    try:
        loaded = load(tiny, file)
    except CheckpointError as error:
        assert "damaged.safetensors" in str(error)
    else:  # it was white space, or a name of no meaning, that was written otherwise
        assert torch.equal(loaded.features.cls, load(tiny, saved).features.cls)


# --- whole or not at all --------------------------------------------------------------------------


class Stopped(BaseException):
    pass


def test_an_interrupt_leaves_the_old_file(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "seen.safetensors"
    bvllm.open_video(tiny[0], FRAMES, processor=tiny[1]).save(file)
    before = file.read_bytes()

    def interrupted(tensors: Any, new: Path, metadata: Any) -> None:
        Path(new).write_bytes(b"half of it")
        raise Stopped

    monkeypatch.setattr("bvllm_adapters.seeing.features_file.save_file", interrupted)
    with pytest.raises(Stopped):
        bvllm.open_video(tiny[0], FRAMES[:2], processor=tiny[1]).save(file)
    assert file.read_bytes() == before and os.listdir(tmp_path) == [file.name]


def test_what_is_written_aside_lies_in_the_same_folder(tmp_path: Path) -> None:
    file = tmp_path / "a file.bin"
    file.write_text("old")
    with aside(file) as new:
        new.write_text("new")
        assert new.parent == tmp_path and file.read_text() == "old"
    assert file.read_text() == "new" and os.listdir(tmp_path) == [file.name]


def test_a_kill_leaves_the_old_file_or_the_new_one(saved: Path, tmp_path: Path) -> None:
    """A process that does nothing but save, killed at some moment."""
    code = """
import sys, torch
from pathlib import Path
from bvllm_adapters.seeing.features_file import write
state = {"cls": torch.zeros(1), "patches": torch.zeros(2_000_000)}
print("ready", flush=True)
while True:
    for value in range(1, 100):
        write(sys.argv[1], {k: v + value for k, v in state.items()}, {"value": value})
"""
    file = tmp_path / "seen.safetensors"
    for wait in (0.05, 0.11, 0.17, 0.23):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        if file.exists():  # whole, with the settings that were written with it
            tensors, metadata = parts(file)
            value = json.loads(metadata["about"])["value"]
            assert (tensors["patches"] == value).all() and (tensors["cls"] == value).all()


def test_a_link_stays_one(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "seen.safetensors"
    link.symlink_to(tmp_path / "there" / "features")
    bvllm.open_video(tiny[0], FRAMES, processor=tiny[1]).save(link)
    assert link.is_symlink() and len(load(tiny, tmp_path / "there" / "features")) == 6


def test_a_folder_is_no_file(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file: got .*, wanted one in a folder that is there"):
        bvllm.open_video(tiny[0], FRAMES, processor=tiny[1]).save(tmp_path)
    assert not list(tmp_path.iterdir())


# --- among the frames -----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [AGAIN, None], ids=["again", "kept"])
def test_features_lie_among_the_frames_that_they_are_of(
    tiny: tuple[Any, Any], tmp_path: Path, encoding: Encoding | None
) -> None:
    for i, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    opened = bvllm.open_video(tiny[0], tmp_path, processor=tiny[1], encoding=encoding)
    file = tmp_path / "seen.safetensors"
    before = str(opened.ask("what?", max_new_tokens=3))
    for _ in range(2):
        opened.save(file)
        opened.encoded._again.cache.clear()
        assert str(opened.ask("what?", max_new_tokens=3)) == before
        loaded = load(tiny, file, video=tmp_path, encoding=encoding)
        (tmp_path / "notes.txt").write_text("beside")
        (tmp_path / "thumbnails").mkdir(exist_ok=True)
        assert str(loaded.ask("what?", max_new_tokens=3)) == before
        loaded.save(tmp_path / "again.safetensors")
    assert len(bvllm.open_video(tiny[0], tmp_path, processor=tiny[1])) == len(FRAMES)
    Image.fromarray(FRAMES[0]).save(tmp_path / "3.png")
    with pytest.raises(ValueError, match=r"wanted .* as it was seen"):
        load(tiny, file, video=tmp_path)
    for picture in tmp_path.glob("*.png"):
        picture.unlink()
    if encoding is AGAIN:
        opened.encoded._again.cache.clear()
        with pytest.raises(bvllm.VideoError, match="has changed, or gone, since"):
            opened.ask("what?")
    else:
        assert str(copy.copy(opened).ask("what?", max_new_tokens=3)) == before
