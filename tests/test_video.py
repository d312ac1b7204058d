"""Reading videos whose pictures show their own numbers; media.py writes them."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from media import SIZE, join_streams, numbers, picture, write_sound, write_video
from PIL import Image

from bvllm_adapters import VideoError, read_video
from bvllm_adapters.evaluation.needle import DEMO_VIDEO
from bvllm_adapters.video import file as video_file
from bvllm_adapters.video.read import VideoWarning
from bvllm_adapters.video.sampling import Sampling

UNEVEN = np.cumsum([0.0] + [0.1, 0.5, 0.04, 0.16, 1.0, 0.1] * 7)[:40]
B_FRAMES = {"bf": "3", "x264-params": "b-adapt=0"}
OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=12:scenecut=0"}
GROUPS, IN_ORDER = "only the groups needed", "all from the beginning"

# name: how it is written, and what of it is to be decoded
KINDS = {
    "h264.mp4": ({}, GROUPS),
    "b_frames.mp4": ({"options": B_FRAMES}, GROUPS),
    "h264.mov": ({}, GROUPS),
    "fragments.mp4": ({"container_options": {"movflags": "frag_keyframe+empty_moov"}}, GROUPS),
    "h264.mkv": ({"options": B_FRAMES}, GROUPS),
    "live.mkv": ({"container_options": {"live": "1"}}, GROUPS),  # its header tells no length
    "vp9.webm": ({"codec": "libvpx-vp9"}, GROUPS),
    "uneven.mp4": ({"times": UNEVEN}, GROUPS),
    "uneven.mkv": ({"times": UNEVEN}, GROUPS),
    "odd.mp4": ({"size": (97, 65), "pixels": "yuv444p"}, GROUPS),
    "turned90.mp4": ({"turned": 90}, GROUPS),
    "turned180.mp4": ({"turned": 180}, GROUPS),
    "turned270.mp4": ({"turned": 270}, GROUPS),
    "turned90.mkv": ({"turned": 90}, GROUPS),
    "turned180.mkv": ({"turned": 180}, GROUPS),
    "mirrored.mp4": ({"mirrored": True}, GROUPS),
    "open_groups.mp4": ({"options": OPEN_GROUPS}, GROUPS),
    "hevc.mp4": ({"codec": "libx265", "options": {"x265-params": "log-level=none"}}, GROUPS),
    "cut.mp4": ({"first": -13}, GROUPS),
    "cut_b_frames.mp4": ({"first": -13, "options": B_FRAMES}, GROUPS),
    "ten_bit.mp4": ({"pixels": "yuv420p10le"}, GROUPS),
    "av1.mp4": ({"codec": "libsvtav1"}, GROUPS),
    "av1.mkv": ({"codec": "libsvtav1"}, GROUPS),
    "vp8.webm": ({"codec": "libvpx"}, IN_ORDER),
    "h264.ts": ({"options": B_FRAMES}, GROUPS),
    "mpeg4.avi": ({"codec": "mpeg4"}, IN_ORDER),
    "b_frames.avi": ({"options": B_FRAMES}, IN_ORDER),
    "mpeg2.mpg": ({"codec": "mpeg2video", "fps": 25}, IN_ORDER),
    "h264.flv": ({}, IN_ORDER),
    "bare.h264": ({"fps": 25}, IN_ORDER),
    "moving.gif": ({"codec": "gif", "pixels": "rgb8"}, IN_ORDER),
    "moving.png": ({"codec": "apng", "pixels": "rgb24", "format": "apng"}, IN_ORDER),
    "ts_called.mp4": ({"format": "mpegts"}, GROUPS),
    "one_frame.mp4": ({"frames": 1}, GROUPS),
}


def pick(times, duration, **sampling):
    return Sampling(**sampling).pick(times, duration)


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """Path of the video of a kind, written when first asked for."""
    folder = tmp_path_factory.mktemp("media")

    def path(name):
        if not (folder / name).exists():
            how, _ = KINDS[name]
            try:
                av.Codec(how.get("codec", "libx264"), "w")
            except av.error.UnknownCodecError as error:
                pytest.skip(f"this PyAV has no encoder {error}")
            write_video(folder / name, **how)
        return folder / name

    return path


@pytest.fixture
def decoded_in_order(monkeypatch):
    """The indices of frames since then for which a file was decoded from its beginning."""
    done = []
    in_order = video_file._in_order

    def spied(path, index, wanted):
        done.extend(wanted.tolist())
        return in_order(path, index, wanted)

    monkeypatch.setattr(video_file, "_in_order", spied)
    return done


def shown(name):
    """The numbers that a whole video shows, and when."""
    how, _ = KINDS[name]
    if "times" in how:
        return list(range(40)), how["times"]
    first, count = -how.get("first", 0), how.get("frames", 40)
    return list(range(first, count)), np.arange(count - first) / how.get("fps", 10)


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_right_and_upright(name, media):
    expected, times = shown(name)
    video = read_video(media(name), fps=None)
    assert numbers(video.frames) == expected
    np.testing.assert_allclose(video.seconds, times, atol=1e-3)  # as containers round
    width, height = KINDS[name][0].get("size", SIZE)
    assert video.frames.shape == (len(expected), height, width, 3)
    assert video.frames.dtype == np.uint8 and video.seconds.dtype == np.float64
    assert video.frame_count == len(expected)
    assert video.duration > video.seconds[-1]
    assert (video.source, video.is_image) == (str(media(name)), False)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "one_frame.mp4"])
def test_sampled_frames_are_those_on_screen(name, media):
    expected, times = shown(name)
    video = read_video(media(name), fps=3, start=0.5, end=2.6)
    # 0.5, 0.833, ... 2.5 s; the last frame stays on screen as long as the video lasts.
    moments = [m for m in 0.5 + np.arange(7) / 3 if m < times[-1] + times[-1] / len(times)]
    on_screen = [int(np.flatnonzero(times <= moment + 1e-3)[-1]) for moment in moments]
    places = list(dict.fromkeys(on_screen))
    assert numbers(video.frames) == [expected[place] for place in places]
    np.testing.assert_allclose(video.seconds, times[places], atol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_decoded(name, media, decoded_in_order):
    read_video(media(name), fps=None, max_frames=3)
    assert bool(decoded_in_order) == (KINDS[name][1] == IN_ORDER)


# It decodes these with groups too, but has them lying, gives frames of other groups, or none.
WRONG_IN_DECORD = {
    "live.mkv", "turned90.mkv", "turned180.mkv", "mirrored.mp4", "open_groups.mp4", "hevc.mp4",
    "cut.mp4", "cut_b_frames.mp4", "ten_bit.mp4", "av1.mp4", "av1.mkv", "h264.ts", "ts_called.mp4",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name for name in KINDS if KINDS[name][1] == GROUPS and name not in WRONG_IN_DECORD]
)
def test_frames_are_those_of_decord(name, media):
    decord = pytest.importorskip("decord")
    reader = decord.VideoReader(str(media(name)))
    expected = reader.get_batch(range(len(reader))).asnumpy()
    np.testing.assert_array_equal(read_video(media(name), fps=None).frames, expected)


def test_a_clock_set_anew_goes_on(tmp_path):
    part = write_video(tmp_path / "part.ts", frames=20)
    wider = write_video(tmp_path / "wider.ts", frames=20, size=(192, 128))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() + wider.read_bytes())
    video = read_video(joined, fps=None)
    assert numbers(video.frames) == [*range(20), *range(20)]
    np.testing.assert_allclose(video.seconds, np.arange(40) / 10, atol=1e-6)
    assert video.frames.shape[1:3] == (64, 96)  # the size of the first


def test_largest_of_several_streams(tmp_path):
    small = write_video(tmp_path / "small.mp4")
    large = write_video(tmp_path / "large.mp4", size=(192, 128))
    still = write_video(tmp_path / "still.mp4", size=(384, 256), frames=1)
    video = read_video(join_streams(tmp_path / "both.mp4", small, still, large))
    assert numbers(video.frames) == [0, 10, 20, 30] and video.frames.shape[1:3] == (128, 192)
    assert video.track == "3 of 3: h264 192x128"
    assert read_video(small).track is None


def test_first_frame_is_second_zero(tmp_path):
    late = write_video(tmp_path / "late.mkv", times=5.0 + UNEVEN)
    video = read_video(late, fps=None)
    np.testing.assert_allclose(video.seconds, UNEVEN, atol=1e-3)


# The window, the cap, the progress, the memory


def test_window_and_cap(media):
    path = media("h264.mp4")  # 4 s, 10 fps
    assert numbers(read_video(path).frames) == [0, 10, 20, 30]
    assert numbers(read_video(path, start=1.5, end=99).frames) == [15, 25, 35]
    assert numbers(read_video(path, start=1.55, end=1.6).frames) == [15]
    assert numbers(read_video(path, end=0.3, fps=None).frames) == [0, 1, 2]
    assert numbers(read_video(path, max_frames=2).frames) == [0, 30]
    assert numbers(read_video(path, fps=None, max_frames=4).frames) == [0, 13, 26, 39]
    assert numbers(read_video(path, fps=None, max_frames=1, end=2.1).frames) == [10]
    assert numbers(read_video(path, fps=1000, max_frames=40).frames) == list(range(40))


@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts"])
def test_progress(name, media):
    calls = []
    read_video(media(name), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_only_chosen_frames_are_held(suffix, tmp_path):
    path = write_video(tmp_path / f"large{suffix}", size=(320, 240))
    read_video(path)  # imports are not what is measured
    tracemalloc.start()
    try:
        read_video(path, fps=None, max_frames=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * 320 * 240 * 3  # of 40


@given(
    gaps=st.lists(st.integers(0, 1500).map(lambda n: 2 * n), min_size=1, max_size=30),
    fps=st.sampled_from([Fraction(1, 3), Fraction(1), Fraction(2), Fraction(24), Fraction(30)]),
    start=st.integers(0, 3000),
    length=st.integers(1, 9000),
)
def test_pick_asks_at_each_moment(gaps, fps, start, length):
    """Times in ms: `gaps` from frame to frame, the last one up to the end."""
    times = np.cumsum([0, *gaps])
    expected = []
    moment = Fraction(start)
    while moment < min(start + length, times[-1] - 1):
        expected.append(max(i for i, time in enumerate(times[:-1]) if time <= moment + 1))
        moment += 1000 / fps
    end = (start + length) / 1000
    picked = pick(times[:-1] / 1000, times[-1] / 1000, fps=float(fps), start=start / 1000, end=end)
    assert picked.tolist() == sorted(set(expected))


def test_pick_at_the_edges():
    tenths = np.arange(10) / 10
    assert pick(tenths, 1.0, fps=10, start=0.1, end=0.4).tolist() == [1, 2, 3]
    assert pick(tenths, 1.0, start=0.1, end=0.4).tolist() == [1, 2, 3]
    assert pick(tenths, 1.0, start=0.2, end=0.2005).tolist() == [2]
    assert pick(tenths, 1.0, start=1.0).tolist() == []
    assert pick(np.array([0.0, 1.0, 1.0, 2.0]), 3.0).tolist() == [0, 2, 3]
    assert pick(np.arange(8) / 2000, 8 / 2000).tolist() == list(range(8))


@given(count=st.integers(1, 300), most=st.integers(1, 300))
def test_cap_spreads_evenly(count, most):
    picked = pick(np.arange(count) / 10, count / 10, max_frames=most)
    assert len(picked) == min(count, most)
    if most == 1:
        assert abs(picked[0] - (count - 1) / 2) <= 0.5
    else:
        assert (picked[0], picked[-1]) == (0, count - 1)
        gaps = np.diff(picked)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1


# Images, folders, arrays, lists


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg", ".tiff", ".gif"])
def test_image_file(suffix, tmp_path):
    path = tmp_path / f"still{suffix}"
    Image.fromarray(picture(77)).save(path)
    video = read_video(path, fps=2)
    assert video.is_image and numbers(video.frames) == [77]
    assert (video.seconds.tolist(), video.frame_count) == ([0.0], 1)


def test_images_are_shown_as_viewers_do(tmp_path):
    lying = Image.fromarray(np.rot90(picture(6)))
    lying.getexif()[0x0112] = 6  # EXIF: to be turned clockwise
    lying.save(tmp_path / "phone.jpg", exif=lying.getexif())
    assert numbers(read_video(tmp_path / "phone.jpg").frames) == [6]

    grey = np.full((8, 8), 0x8000, np.uint16)
    Image.fromarray(grey).save(tmp_path / "sixteen_bits.png")
    assert read_video(tmp_path / "sixteen_bits.png").frames.max() == 0x80

    few = Image.fromarray(picture(9)).convert("P")
    few.save(tmp_path / "palette.png", transparency=bytes([0, 128] * 8))
    assert numbers(read_video(tmp_path / "palette.png").frames) == [9]

    first = Image.fromarray(picture(3))
    first.save(tmp_path / "pages.tiff", save_all=True, append_images=[Image.fromarray(picture(4))])
    pages = read_video(tmp_path / "pages.tiff")
    assert pages.is_image and numbers(pages.frames) == [3]


def test_folder_in_natural_order(tmp_path):
    for i in (1, 2, 10, 11):
        Image.fromarray(picture(i)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._frame1.png").write_bytes(b"what macOS leaves behind")
    video = read_video(tmp_path, fps=2, start=0.5)
    assert numbers(video.frames) == [2, 10, 11]
    assert (video.seconds.tolist(), video.duration) == ([0.5, 1.0, 1.5], 2.0)
    assert (video.source, video.is_image, video.frame_count) == (str(tmp_path), False, 4)


def test_arrays_and_lists_are_sampled_already():
    pictures = np.stack([picture(i) for i in range(9)])
    video = read_video(pictures, fps=2, end=3, max_frames=3)
    assert numbers(video.frames) == [0, 2, 5]
    assert (video.seconds.tolist(), video.duration) == ([0.0, 1.0, 2.5], 4.5)
    assert (video.source, video.is_image, video.frame_count) == ("array", False, 9)
    assert not np.shares_memory(video.frames, pictures)

    one = read_video(pictures[5])
    assert (one.is_image, numbers(one.frames), one.seconds.tolist()) == (True, [5], [0.0])

    images = [Image.fromarray(one) for one in pictures[:3]]
    images[1] = images[1].convert("RGBA")
    listed = read_video(images, fps=None)
    assert numbers(listed.frames) == [0, 1, 2]
    assert (listed.source, listed.is_image) == ("list of 3 images", False)
    assert listed.seconds.tolist() == [0.0, 1.0, 2.0]
    assert read_video(images[0]).is_image and not read_video(images[:1]).is_image


def test_images_of_different_sizes(tmp_path):
    images = [Image.fromarray(picture(i, (96, 64 if i != 2 else 60))) for i in range(4)]
    with pytest.raises(VideoError, match=r"source\[2\]: 96x60, but source\[0\] is 96x64"):
        read_video(images)
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    with pytest.raises(VideoError, match=r"2\.png: 96x60, but .*0\.png is 96x64"):
        read_video(tmp_path)


# What cannot be read


def missing(folder):
    return folder / "missing.mp4"


def empty(folder):
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def text(folder):
    (folder / "text.mp4").write_text("This is no video at all.\n" * 100)
    return folder / "text.mp4"


def text_by_name(folder):
    return text(folder).rename(folder / "text.txt")


def no_images(folder):
    (folder / "clip.mp4").write_text("a folder of videos is none of images")
    return folder


def audio_only(folder):
    return write_sound(folder / "sound.mp4")


def audio_with_cover(folder):
    return write_sound(folder / "album.mp4", cover=True)


def no_frames(folder):
    return write_sound(folder / "sound.mkv", video=True)


def no_index(folder):
    path = write_video(folder / "cut.mp4")
    path.write_bytes(path.read_bytes()[:-500])
    return path


def only_header(folder):
    path = write_video(folder / "cut.mp4", container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 20])
    return path


def broken_image(folder):
    Image.fromarray(picture(1)).save(folder / "half.png")
    (folder / "half.png").write_bytes((folder / "half.png").read_bytes()[:100])
    return folder / "half.png"


def broken_image_in_folder(folder):
    Image.fromarray(picture(1)).save(folder / "0.png")
    (folder / "1.png").write_text("no image")
    return folder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (missing, "no such file"),
        (empty, "the file is empty"),
        (text, "not a video"),
        (text_by_name, "not a video"),
        (no_images, "no images in this folder"),
        (audio_only, "no video stream"),
        (audio_with_cover, "no video stream"),
        (no_frames, "no frames"),
        (no_index, "truncated: its index"),
        (only_header, "truncated: no frames"),
        (broken_image, "cannot be read"),
        (broken_image_in_folder, "cannot be read"),
    ],
)
def test_what_cannot_be_read(make, reason, tmp_path, capfd):
    path = make(tmp_path)
    capfd.readouterr()  # encoders talk
    with pytest.raises(VideoError) as caught:
        read_video(path)
    assert str(caught.value).startswith(str(path)) and reason in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (7, TypeError, "source: got int, wanted a path"),
        (["a.png"], TypeError, r"source\[0\]: got str, wanted"),
        ([], VideoError, "source: got an empty list"),
        (np.zeros((2, 8, 8, 3)), VideoError, r"array: got float64 \(2, 8, 8, 3\), wanted uint8"),
        (np.zeros((8, 8), np.uint8), VideoError, r"array: got uint8 \(8, 8\), wanted"),
        (np.zeros((0, 8, 8, 3), np.uint8), VideoError, r"array: got shape \(0, 8, 8, 3\)"),
        (Image.new("F", (8, 8)), VideoError, "image: pixels of mode F"),
    ],
)
def test_wrong_sources(source, error, words):
    with pytest.raises(error, match=words):
        read_video(source)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"fps": 0}, ValueError, "fps: got 0, wanted a finite number > 0"),
        ({"fps": float("nan")}, ValueError, "fps: got nan"),
        ({"fps": float("inf")}, ValueError, "fps: got inf"),
        ({"fps": "1"}, TypeError, r"fps: got '1' \(str\)"),
        ({"fps": True}, TypeError, "fps: got True"),
        ({"start": -1}, ValueError, "start: got -1, wanted a finite number >= 0"),
        ({"start": 2, "end": 2}, ValueError, "end: got 2, wanted more than start=2"),
        ({"end": 0}, ValueError, "end: got 0, wanted more than start=0"),
        ({"end": float("nan")}, ValueError, "end: got nan"),
        ({"start": 40}, ValueError, "start: got 40, wanted less than the 4 s of array"),
        ({"max_frames": 0}, ValueError, "max_frames: got 0"),
        ({"max_frames": 2.0}, TypeError, "max_frames: got 2.0"),
        ({"max_frames": True}, TypeError, "max_frames: got True"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        read_video(np.zeros((4, 8, 8, 3), np.uint8), **arguments)
    assert not isinstance(caught.value, VideoError)


def test_window_after_the_end_names_the_file(media):
    with pytest.raises(
        ValueError, match=r"start: got 4\.0, wanted less than the 4 s of .*h264\.mp4"
    ):
        read_video(media("h264.mp4"), start=4.0)


@pytest.mark.parametrize(
    ("name", "how", "of"),
    [
        ("fast.mp4", {"container_options": {"movflags": "faststart"}}, " of 4.0"),
        ("h264.mkv", {}, " of 4.0"),
        ("vp9.webm", {"codec": "libvpx-vp9"}, " of 4.0"),
        ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}, ""),
        ("h264.flv", {}, " of 4."),
        ("mpeg4.avi", {"codec": "mpeg4"}, ""),
        ("h264.ts", {}, ""),
        ("moving.gif", {"codec": "gif", "pixels": "rgb8"}, ""),
    ],
)
def test_truncated(name, how, of, tmp_path):
    path = write_video(tmp_path / name, **how)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.warns(VideoWarning) as caught:
        video = read_video(path, fps=None)
    (warning,) = caught
    assert warning.filename == __file__
    read = len(video.frames)
    assert 5 < read < 35
    # All up to the last two or three, which may lack those between them; the last one may be in
    # part.
    shown = numbers(video.frames[:-1])
    assert shown == np.round(video.seconds[:-1] * 10).astype(int).tolist()
    assert shown[:-2] == list(range(read - 3))
    assert video.frame_count == read
    words = f"{path}: truncated: could read {video.duration:.1f}{of}"
    assert str(warning.message).startswith(words) and f"{read} frames" in str(warning.message)


def test_truncated_in_a_box_of_long_length(tmp_path):
    path = write_video(tmp_path / "long.mp4")
    content = path.read_bytes() + (1).to_bytes(4, "big") + b"free" + (32).to_bytes(8, "big")
    path.write_bytes(content + bytes(16))
    read_video(path)  # without a warning
    path.write_bytes(content)
    with pytest.warns(VideoWarning, match=r"truncated: could read 4\.0 s, 40 frames"):
        read_video(path)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_damaged(suffix, tmp_path):
    path = write_video(tmp_path / f"damaged{suffix}", gop=1)  # each frame on its own
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[20]
        content = path.read_bytes().replace(bytes(packet), bytes([255]) * packet.size)
    path.write_bytes(content)
    words = rf"damaged\{suffix}: damaged: could read 4\.0 s, 39 frames"
    with pytest.warns(VideoWarning, match=words):
        video = read_video(path, fps=None)
    assert numbers(video.frames) == [*range(20), *range(21, 40)]
    np.testing.assert_allclose(video.seconds[[19, 20]], [1.9, 2.1])
    with pytest.warns(VideoWarning, match=words):
        assert numbers(read_video(path).frames) == [0, 10, 19, 30]  # 20 is lost


# Processes


def test_importing_opens_nothing():
    code = "import sys, bvllm_adapters.video.read; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


class Clips(torch.utils.data.Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return numbers(read_video(self.paths[index]).frames)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_forked_after_reading(media):
    paths = [media(name) for name in ("h264.mp4", "h264.ts", "vp9.webm", "h264.mkv")] * 2
    clips = Clips(paths)
    assert clips[0] == clips[1] == [0, 10, 20, 30]
    loader = torch.utils.data.DataLoader(
        clips,
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
        timeout=30,  # a reader that the parent left open would hang
    )
    assert [list(each) for each in loader] == [[0, 10, 20, 30]] * 8


def test_reading_goes_on_where_somebody_has_set_pyavs_log_level():
    """As torchvision does. Then a decoder's threads log, for which they need Python's lock, and
    freeing it waits for them; without care two of three such runs hang."""
    code = (
        "import av, logging, sys, threading, time\n"
        "from bvllm_adapters.video.media import media_of\n"
        "from bvllm_adapters.video.packets import read_index\n"
        "av.logging.set_level(av.logging.ERROR)\n"
        "logging.disable(logging.CRITICAL)\n"
        "def wait():\n"
        "    while True:\n"
        "        time.sleep(0.0005)\n"
        "for _ in range(3):\n"
        "    threading.Thread(target=wait, daemon=True).start()\n"
        "for _ in range(300):\n"
        "    read_index(media_of(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(DEMO_VIDEO)], check=True, timeout=120)
