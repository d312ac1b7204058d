from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media import numbers, write_video
from PIL import Image

from bvllm_adapters.bench.clips import at_least
from bvllm_adapters.video.frames import VideoError
from bvllm_adapters.video.read import read_video

B_FRAMES = {"bf": "2", "b-adapt": "0"}
BUNNY = Path(__file__).parents[2] / "examples" / "big_buck_bunny.mp4"  # 5.28 s, with B-frames


def test_a_long_enough_video_is_itself(tmp_path):
    assert at_least(BUNNY, 5, tmp_path) == BUNNY
    assert not list(tmp_path.iterdir())


def test_a_short_one_begins_anew_and_nothing_is_encoded_again(tmp_path):
    once = read_video(BUNNY, fps=None)
    again = read_video(at_least(BUNNY, 12, tmp_path), fps=None)
    count = len(once.seconds)
    assert again.duration == pytest.approx(3 * once.duration) and len(again.seconds) == 3 * count
    for times in range(3):
        shown = slice(times * count, (times + 1) * count)
        assert np.array_equal(again.frames[shown], once.frames)
        assert again.seconds[shown] == pytest.approx(once.seconds + times * once.duration)
    assert len(read_video(at_least(BUNNY, 12, tmp_path), end=12.0).seconds) == 12


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("variable.mkv", {"times": [0, 0.1, 0.5, 0.6, 1.4, 1.5, 1.6, 2.9], "options": B_FRAMES}),
        ("order.mkv", {"options": B_FRAMES}),
        ("one.mkv", {"frames": 1}),
        ("vp8.webm", {"codec": "libvpx"}),
        ("flash.flv", {"codec": "flv"}),
        ("order.mov", {"options": B_FRAMES}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
    ],
)
def test_any_format_begins_anew(name, settings, tmp_path):
    count = len(settings["times"]) if "times" in settings else settings.pop("frames", 20)
    clip = write_video(tmp_path / name, frames=count, **settings)
    once = read_video(clip, fps=None)
    again = read_video(at_least(clip, 5, tmp_path), fps=None)
    assert again.duration >= 5 and len(again.seconds) % len(once.seconds) == 0
    assert numbers(again.frames) == numbers(once.frames) * (len(again.seconds) // count)


def test_pictures_have_no_packets(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    assert at_least(tmp_path, 3, tmp_path) == tmp_path
    with pytest.raises(VideoError, match="cannot be shown for 4 s"):
        at_least(tmp_path, 4, tmp_path)


def test_seconds_are_a_count(tmp_path):
    with pytest.raises(ValueError, match="seconds: got 0"):
        at_least(BUNNY, 0, tmp_path)
