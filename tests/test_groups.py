"""Decoding only what is needed gives the bits that decoding everything gives."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import numbers, write_video

from bvllm_adapters.video import file as video_file
from bvllm_adapters.video import groups
from bvllm_adapters.video.groups import Plan, by_groups
from bvllm_adapters.video.media import media_of
from bvllm_adapters.video.packets import Groups, read_index

FRAMES = 60
X264 = "keyint=12:min-keyint=12:scenecut=0:b-adapt=0:"
X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0:b-adapt=0:"


def x264(options):
    return {"options": {"x264-params": X264 + options}}


def x265(options):
    return {"codec": "libx265", "options": {"x265-params": X265 + options}}


KINDS = {
    "no_b_frames.mp4": x264("bframes=0"),
    "b_frames.mp4": x264("bframes=3"),
    "b_pyramid.mkv": x264("bframes=7:b-pyramid=normal:ref=6"),
    "slices.mp4": x264("bframes=3:slices=4"),
    "fields.mp4": x264("bframes=3:tff=1"),
    "open.mp4": x264("bframes=3:open-gop=1"),
    "refreshed.mp4": x264("bframes=0:intra-refresh=1"),
    "intra.mp4": {"gop": 1},
    "one_group.mp4": {"gop": FRAMES},
    "cut.mp4": x264("bframes=3") | {"first": -13},
    "fragments.mp4": x264("bframes=3")
    | {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "live.mkv": x264("bframes=3") | {"container_options": {"live": "1"}},
    "uneven.mkv": x264("bframes=3") | {"times": np.cumsum([0.04, 0.5, 0.1] * (FRAMES // 3))},
    "b_frames.ts": x264("bframes=3"),
    "open.ts": x264("bframes=3:open-gop=1"),
    "turned.mp4": x264("bframes=3") | {"turned": 90},
    "hevc.mp4": x265("bframes=3:open-gop=0"),
    "hevc_open.mkv": x265("bframes=3:open-gop=1"),
    "hevc_layers.mp4": x265("bframes=3:temporal-layers=3:b-pyramid=1"),
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1"},
}


@pytest.fixture(scope="session")
def decoded(tmp_path_factory):
    """File, index and all frames of a kind, decoded from the beginning when first asked for."""
    folder, done = tmp_path_factory.mktemp("groups"), {}

    def get(name):
        if name not in done:
            media = media_of(write_video(folder / name, frames=FRAMES, **KINDS[name]))
            index = read_index(media)
            count = len(index.seconds)
            done[name] = media, index, list(video_file._in_order(media, index, np.arange(count)))
            assert numbers(done[name][2]) == list(range(FRAMES - count, FRAMES))
        return done[name]

    return get


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_any_frames_are_those_of_decoding_everything(name, decoded, data):
    media, index, frames = decoded(name)
    chosen = sorted(data.draw(st.sets(st.integers(0, len(frames) - 1), min_size=1)))
    with patch.object(groups, "THREADS", data.draw(st.sampled_from([1, 2, 4]))):
        given = list(by_groups(media, index, index.groups, np.array(chosen)))
    assert len(given) == len(chosen)
    for frame, i in zip(given, chosen, strict=True):
        np.testing.assert_array_equal(frame, frames[i])


@pytest.fixture
def fed(monkeypatch):
    """Times of the packets that decoders have got since."""
    got = []
    decode = groups.decode

    def spied(stream, packet):
        if packet is not None:
            got.append(packet.pts)
        return decode(stream, packet)

    monkeypatch.setattr(groups, "decode", spied)
    return got


@pytest.mark.parametrize(
    ("name", "groups_of_file", "packets_for_last"),
    [
        ("no_b_frames.mp4", 5, 12),
        ("b_frames.mp4", 5, 6),
        ("intra.mp4", 60, 1),
        ("hevc_open.mkv", 5, 6),
        ("hevc_layers.mp4", 5, 10),  # pictures of a higher layer may need those that lower do not
        ("vp9.webm", 5, 12),
        # Key frames that are no IDR pictures: those after them may need those before.
        ("refreshed.mp4", 1, 60),
        ("open.mp4", 1, 30),
        ("b_frames.ts", 5, 6),
        ("open.ts", 1, 30),
    ],
)
def test_what_the_last_frame_needs(name, groups_of_file, packets_for_last, decoded, fed):
    media, index, frames = decoded(name)
    assert len(index.groups.key_pts) == groups_of_file
    (last,) = by_groups(media, index, index.groups, np.array([FRAMES - 1]))
    np.testing.assert_array_equal(last, frames[-1])
    assert len(fed) == packets_for_last


def test_nothing_is_decoded_twice(decoded, fed):
    media, index, _ = decoded("no_b_frames.mp4")
    chosen = np.array([5, 11, 12, 30, 31])  # the first two groups to their ends, half of the third
    assert len(list(by_groups(media, index, index.groups, chosen))) == 5
    assert len(fed) == 12 + 1 + 8


@pytest.mark.parametrize("trouble", ["fails", "is corrupt", "is late"])
@pytest.mark.parametrize("threads", [1, 4])
def test_trouble_ends_it_after_right_frames(trouble, threads, decoded, monkeypatch):
    media, index, frames = decoded("b_frames.mp4")
    monkeypatch.setattr(groups, "THREADS", threads)
    decode, bad = groups.decode, index.pts[20]

    class Odd:
        is_corrupt, pts = trouble == "is corrupt", bad + (trouble == "is late")

    def spied(stream, packet):
        if trouble == "fails":
            return None if packet is not None and packet.pts == bad else decode(stream, packet)
        return [Odd if frame.pts == bad else frame for frame in decode(stream, packet)]

    monkeypatch.setattr(groups, "decode", spied)
    given = list(by_groups(media, index, index.groups, np.arange(2, FRAMES, 3)))
    # Packets stand before the frames that need them, so that decoding may fail a few frames early.
    assert 4 <= len(given) <= 6
    for frame, expected in zip(given, frames[2::3], strict=False):
        np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("name", ["b_frames.mp4", "hevc.mp4"])
def test_what_is_damaged_is_neither_begun_at_nor_left_out(name, fill, decoded, tmp_path, fed):
    media, index, frames = decoded(name)
    content = media.path.read_bytes()
    with av.open(str(media.path)) as container:
        key, spare = [packet for packet in container.demux(video=0) if packet.size][12:16:3]

    def damage(packet):
        (tmp_path / name).write_bytes(content.replace(bytes(packet), bytes([fill]) * packet.size))
        damaged = media_of(tmp_path / name)
        return damaged, read_index(damaged)

    media_now, index_now = damage(key)
    assert key.pts in index.groups.key_pts and key.pts not in index_now.groups.key_pts
    (first,) = by_groups(media_now, index_now, index_now.groups, np.array([0, 13, 23]))
    np.testing.assert_array_equal(first, frames[0])

    chosen = np.array([23])
    for file, whole in ((media, True), (damage(spare)[0], False)):
        fed.clear()
        assert bool(list(by_groups(file, index, index.groups, chosen))) == whole
        assert (spare.pts in fed) == (not whole)


# How the decoding of long files is planned


def hour(group):
    """An hour of 30 frames/s in groups of so many, without B-frames."""
    pts = np.arange(108_000)
    keys = pts[::group]
    return Groups(pts, pts, keys, keys, keys, pts)


FULL_HD = 3 * 1920 * 1080


def test_a_frame_a_second_is_decoded_side_by_side(monkeypatch):
    monkeypatch.setattr(groups, "THREADS", 4)
    plan = Plan(hour(250), np.arange(0, 108_000, 30), FULL_HD)
    assert (plan.decoders, len(plan)) == (4, 432)
    assert plan.depth * plan.decoders * FULL_HD <= groups.AHEAD_BYTES
    run = plan.run(1)
    assert (run.begin, run.seek, run.end) == (250, 250, 480)
    assert run.wanted.tolist() == list(range(270, 481, 30))


def test_a_whole_window_is_decoded_side_by_side(monkeypatch):
    monkeypatch.setattr(groups, "THREADS", 4)
    plan = Plan(hour(250), np.arange(1000, 2000), FULL_HD)
    assert (plan.decoders, len(plan), plan.run(0).end) == (4, 4, 1249)
    assert plan.depth * plan.decoders * FULL_HD <= groups.AHEAD_BYTES


def test_short_groups_in_a_row_are_one_run(monkeypatch):
    monkeypatch.setattr(groups, "THREADS", 4)
    plan = Plan(hour(1), np.arange(100), 3 * 96 * 64)
    assert (plan.decoders, plan.depth) == (4, groups.AHEAD_FRAMES)
    assert np.diff(plan.cuts).tolist() == [8] * 12 + [4]


@pytest.mark.parametrize("frame_bytes", [3 * 96 * 64, FULL_HD, 3 * 7680 * 4320])
@given(chosen=st.sets(st.integers(0, 2000), min_size=1), group=st.sampled_from([1, 7, 30, 250]))
def test_plans_hold_all_frames_once(frame_bytes, chosen, group):
    chosen = np.array(sorted(chosen))
    plan = Plan(hour(group), chosen, frame_bytes)
    runs = [plan.run(i) for i in range(len(plan))]
    np.testing.assert_array_equal(np.concatenate([run.wanted for run in runs]), chosen)
    assert all(run.begin <= run.wanted[0] and run.end == run.wanted[-1] for run in runs)
    assert all(before.end < after.begin for before, after in pairwise(runs))
    assert 1 <= plan.depth <= groups.AHEAD_FRAMES and 1 <= plan.decoders <= len(runs)
