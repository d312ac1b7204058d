"""Sources of frames that are read one by one, as often as asked for, in memory that stays flat."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from media import number, numbers, picture, write_damaged, write_video
from PIL import Image

from bvllm_adapters import VideoError, read_video
from bvllm_adapters.video.frames import FrameSource, SourceChanged, load
from bvllm_adapters.video.read import VideoWarning, open_source

B_FRAMES = {"x264-params": "bframes=3:b-adapt=0"}


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Videos of 4 s in 10 frames/s: one whose groups are known, one that is read in order."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / name, options=B_FRAMES) for name in ("groups.mp4", "order.ts")]


def test_it_is_what_is_read_later(clips):
    for clip in clips:
        source, video = open_source(clip, fps=2, start=1), read_video(clip, fps=2, start=1)
        assert len(source) == 6
        np.testing.assert_array_equal(source.seconds, video.seconds)
        np.testing.assert_array_equal(np.stack(list(source.read(np.arange(6)))), video.frames)
        about = ("source", "is_image", "frame_count", "duration")
        assert all(getattr(source, name) == getattr(video, name) for name in about)


def test_any_positions_any_number_of_times(clips):
    for clip in clips:
        source = open_source(clip, fps=None)
        for chosen in ([3], [0, 20, 39], [], [20, 21], range(40)):
            assert [number(frame) for frame in source.read(chosen)] == list(chosen)
        both = zip(source.read([1, 20]), source.read([2, 30]), strict=True)  # at the same time
        assert [(number(a), number(b)) for a, b in both] == [(1, 2), (20, 30)]


def test_nothing_stays_open(clips):
    def opened():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not list open files")
    gc.collect()  # what other tests have left must not be closed while it is counted
    for clip in clips:
        source = open_source(clip, fps=None)
        before = opened()
        for left_early in (False, True):
            frames = source.read(np.arange(40))
            assert opened() == before
            assert number(next(frames)) == 0
            assert opened() > before
            if left_early:
                frames.close()
            else:
                assert len(list(frames)) == 39
            assert opened() == before


def test_read_in_other_threads(clips):
    for clip in clips:
        source, seen = open_source(clip, fps=None), [None] * 4

        def read(i, source=source, seen=seen):
            seen[i] = [number(frame) for frame in source.read(np.arange(i, 40, 4))]

        threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [list(range(i, 40, 4)) for i in range(4)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_read_after_a_fork(clips):
    for clip in clips:
        source = open_source(clip)
        next(source.read([0, 1]))
        child = os.fork()
        if child == 0:
            right = [number(frame) for frame in source.read([1, 3])] == [10, 30]
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "positions", [[3, 1], [1, 1], [-1], [4], [0.0, 1.0], [[0]], 2], ids=lambda one: str(one)
)
def test_wrong_positions(positions, clips):
    pictures = np.stack([picture(i) for i in range(4)])
    for source in (open_source(clips[0]), open_source(pictures), open_source(read_video(pictures))):
        with pytest.raises(ValueError, match=r"positions: got .*, wanted ascending distinct integ"):
            source.read(positions)


# Stills and what was read already


def test_stills_are_read_when_asked_for(tmp_path):
    for i in range(4):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_text("no image")
    source = open_source(tmp_path, fps=2)
    assert source.seconds.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert [number(frame) for frame in source.read([1, 3])] == [1, 3]
    frames = source.read([1, 2, 3])
    assert number(next(frames)) == 1
    with pytest.raises(VideoError, match=r"2\.png: cannot be read"):
        next(frames)


def test_a_window_of_stills():
    pictures = np.stack([picture(i) for i in range(9)])
    for sampled in (pictures, [Image.fromarray(one) for one in pictures]):
        source = open_source(sampled, fps=2, start=1, max_frames=3)
        assert source.seconds.tolist() == [1.0, 2.5, 4.0]
        assert [number(frame) for frame in source.read([0, 2])] == [2, 8]


def test_a_video_is_taken_as_it_was_read(clips):
    video = read_video(clips[0], fps=2)
    for source in (FrameSource.of(video), open_source(video)):
        assert (len(source), source.frame_count, source.duration) == (8, 40, 4.0)
        assert source.seconds is video.seconds and source.source == video.source
        assert [number(frame) for frame in source.read([1, 7])] == [5, 35]
    assert numbers(load(source).frames) == numbers(video.frames)


# Damaged files


@pytest.fixture
def damaged(tmp_path):
    return write_damaged(tmp_path / "damaged.mp4")


def test_a_source_may_change_while_it_is_read(damaged):
    source = open_source(damaged, fps=None)
    assert len(source) == 40
    frames = source.read([0, 19, 20, 30])
    assert [number(next(frames)), number(next(frames))] == [0, 19]
    with pytest.warns(VideoWarning, match="damaged: could read 4.0 s, 39 frames") as warned:
        with pytest.raises(SourceChanged) as change:
            next(frames)
    assert warned[0].filename == __file__
    changed = change.value.source
    assert (len(changed), changed.frame_count) == (39, 39)
    np.testing.assert_allclose(changed.seconds[[19, 20]], [1.9, 2.1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been warned of
        assert [number(frame) for frame in changed.read([19, 20])] == [19, 21]
        with pytest.raises(SourceChanged):
            list(source.read([20]))
        assert [number(frame) for frame in source.read([0, 30])] == [0, 30]


def test_loading_begins_anew_when_a_source_changes():
    def read(positions):
        yield picture(1)
        raise SourceChanged(FrameSource.of(read_video(np.stack([picture(2), picture(3)]))))

    calls = []
    source = FrameSource(np.arange(3.0), "clip", False, 3, 3.0, read)
    video = load(source, progress=lambda done, total: calls.append((done, total)))
    assert numbers(video.frames) == [2, 3]
    assert (video.seconds.tolist(), video.source) == ([0.0, 1.0], "array")
    assert calls == [(1, 3), (1, 2), (2, 2)]


def test_a_file_that_is_exchanged_is_not_taken_for_the_first(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    source = open_source(path, fps=None)
    write_video(path, frames=20)
    with pytest.raises(SourceChanged) as change:
        list(source.read(np.arange(40)))
    assert len(change.value.source) == 20


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_length(tmp_path):
    """In a process of its own: this one has held more before."""
    minute = write_video(tmp_path / "minute.mp4", frames=600, size=(320, 240), gop=50)
    twenty = repeated(minute, tmp_path / "twenty.mp4", 20)
    code = """
import json, resource, sys, tracemalloc
import numpy as np
from bvllm_adapters.video.read import open_source
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def read(path):
    source = open_source(path)
    return sum(1 for frame in source.read(np.arange(len(source))))
counts = [read(sys.argv[1]), read(sys.argv[1])]
before = peak()
counts.append(read(sys.argv[2]))
grown = peak() - before
tracemalloc.start()
open_source(sys.argv[2], fps=None)
print(json.dumps([counts, grown, tracemalloc.get_traced_memory()[1]]))
"""
    command = [sys.executable, "-c", code, str(minute), str(twenty)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts, grown, index = json.loads(out)
    assert counts == [60, 60, 1200]
    assert grown < 16 * 320 * 240 * 3  # bytes: a few of 1200 frames
    assert index < 100 * 12_000  # bytes, at most, for a packet each


def repeated(path, to, times):
    """The video of `path` again and again in one file, without encoding it anew."""
    with av.open(str(to), "w") as container:
        stream = None
        for i in range(times):
            with av.open(str(path)) as part:
                of = part.streams.video[0]
                stream = stream or container.add_stream_from_template(of)
                for packet in part.demux(of):
                    if packet.dts is not None:
                        packet.pts += i * of.duration
                        packet.dts += i * of.duration
                        packet.stream = stream
                        container.mux(packet)
    return to
