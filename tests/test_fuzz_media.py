"""Damaged video files: a short form of fuzz_media.py, and whether it sees what it looks for.

`pytest -m slow tests/test_fuzz_media.py` tries 2,250 files.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_media
import numpy as np
import pytest
from fuzz_media import KINDS, damaged, judged, write_seeds

from bvllm_adapters.video import Video, VideoError, VideoWarning


def fuzz(*arguments: str, planted: str = "") -> subprocess.CompletedProcess[str]:
    """In a process that has neither torch nor threads, from which each file's is forked."""
    code = f"import os, sys, fuzz_media\n{planted}\nsys.exit(fuzz_media.main(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_some_damaged_files() -> None:
    done = fuzz("--files", "90")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_many_damaged_files() -> None:
    done = fuzz("--seed", "1")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_file_can_be_made_again(tmp_path: Path) -> None:
    kinds = ["h264.mkv", "sound.mp4"]
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        write_seeds(folder, kinds)
        made.append([damaged(kind, i, 0, folder) for kind in kinds for i in range(50)])
    assert made[0] == made[1]
    assert len({data for data, _ in made[0]}) > 90


def test_whole_files_are_read_without_a_word(tmp_path: Path) -> None:
    write_seeds(tmp_path, KINDS)
    for kind in KINDS:
        assert judged(tmp_path / kind) == ("frames", "")


def warn(category: type[Warning]) -> int:
    warnings.warn("damaged", category, stacklevel=2)
    return 0


def refuse(error: Exception) -> int:
    raise error


# Name of the source, sampling and number of a call -> what the pictures show; and the outcome.
READERS: list[tuple[Callable[[str, Any, int], float], str]] = [
    (lambda name, fps, call: 7, "frames"),
    (lambda name, fps, call: warn(VideoWarning), "warned"),
    (lambda name, fps, call: refuse(VideoError(f"{name}: no video")), "refused"),
    (lambda name, fps, call: refuse(VideoError("no video")), "nameless"),
    (lambda name, fps, call: refuse(KeyError(name)), "foreign"),
    (lambda name, fps, call: refuse(ValueError("start: got 2")), "foreign"),
    (lambda name, fps, call: warn(RuntimeWarning), "foreign"),
    (lambda name, fps, call: refuse(MemoryError()), "memory"),
    (lambda name, fps, call: int(call == 1), "difference, silent"),
    (lambda name, fps, call: int(fps == 1), "difference, silent"),
    (lambda name, fps, call: int(fps == 3), "difference, silent"),
    (lambda name, fps, call: int(name == "bytes"), "difference, silent"),
    (lambda name, fps, call: fps == 3 and refuse(VideoError(name)), "difference, silent"),
    (lambda name, fps, call: fps != 3 and refuse(VideoError(name)), "difference, silent"),
    (lambda name, fps, call: fps == 1 and warn(VideoWarning) + 1, "difference, silent"),
    (lambda name, fps, call: warn(VideoWarning) + call, "difference, warned"),
]


@pytest.mark.parametrize("how", range(len(READERS)))
def test_what_is_wrong_is_seen(how: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, outcome = READERS[how]
    calls = itertools.count()

    def reader(source: Any, fps: Any, start: Any) -> Video:
        name = getattr(source, "name", "bytes")
        pixels, times = shown(name, fps, next(calls)), np.arange(2 if start else 0, 6.0)
        frames = np.full((len(times), 2, 2, 3), pixels, np.uint8)
        return Video(frames, times, name, False, 6, 6.0)

    monkeypatch.setattr(fuzz_media, "read_video", reader)
    path = tmp_path / "file.mp4"
    path.write_bytes(b"any")
    assert judged(path)[0] == outcome


@pytest.mark.parametrize("late", [1e-9, 1.0])
def test_other_times_are_seen(late: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(source: Any, fps: Any, start: Any) -> Video:
        times = np.arange(2 if start else 0, 6.0) + late * (fps == 3)
        return Video(np.zeros((len(times), 2, 2, 3), np.uint8), times, "", False, 6, 6.0)

    monkeypatch.setattr(fuzz_media, "read_video", reader)
    path = tmp_path / "file.mp4"
    path.write_bytes(b"any")
    assert judged(path)[0] == "difference, silent"


@pytest.mark.parametrize(
    ("does", "outcome"),
    [("os.abort()", "crash"), ("os._exit(3)", "crash"), ("time.sleep(9)", "hang")],
)
def test_a_process_that_ends_or_does_not_is_seen(does: str, outcome: str, tmp_path: Path) -> None:
    planted = f"""
import time
fuzz_media.WALL = 1
def read_video(*_, **__):
    print("noise", file=sys.stderr, flush=True)
    {does}
fuzz_media.read_video = read_video
"""
    done = fuzz("--only", "mjpeg.avi:0", "--keep", str(tmp_path), planted=planted)
    assert f"] {outcome}: " in done.stdout
    assert done.stdout.splitlines()[2].split()[-1] == "1"  # noise
    assert [path.name for path in tmp_path.iterdir()] == ["00000_mjpeg.avi"]
    assert done.returncode == 1
