"""decord and torchcodec: right, or refused where they are known to be wrong; and decoders of theirs
that are open already.

torchcodec's tests run where it and FFmpeg's libraries are; doubles stand for it elsewhere.
"""

from __future__ import annotations

import importlib
import io
import sys
import threading
import types
import warnings
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from media import join_streams, number, numbers, write_video
from test_groups import KINDS as GROUP_KINDS
from test_video import KINDS, UNEVEN

from bvllm_adapters.video import readers
from bvllm_adapters.video.file import open_file
from bvllm_adapters.video.frames import SourceChanged, VideoError, VideoWarning, load
from bvllm_adapters.video.media import media_of
from bvllm_adapters.video.readers import decoders, open_by, open_decoder
from bvllm_adapters.video.readers.decoders import Decoder
from bvllm_adapters.video.readers.refused import REFUSED
from bvllm_adapters.video.sampling import Sampling

BOTH = ("decord", "torchcodec")
WRITTEN = {name: how for name, (how, _) in KINDS.items()} | GROUP_KINDS

# In these its decoder, or its way to RGB, rounds otherwise: of 255 by so much at most, on average.
# 10 bits: chroma is interpolated; fields: PyAV's FFmpeg converts each on its own; MPEG-4: FFmpeg 5
# and before have another inverse transform.
ROUNDED = {"ten_bit.mp4": 3, "fields.mp4": 3, "mpeg4.avi": 0.1}

STREAMS, TORN = "mixes up the frames of MPEG", "does not tell what truncated"
MIRRORED, FALSE_KEYS = "does not mirror", "begins to decode at frames that need others"
AVI, TIMELESS = "takes frames of AVI for shown", "finds no frames in files that tell no times"
AV1, TURNED, HIDDEN = "has no decoder for AV1", "turns pictures", "shows frames that an edit list"
LATE_KEYS, TRACKS = "miscounts frames", "may read another of several tracks"
LENGTHLESS = "decord cannot read it (["  # of a file whose head tells no length

OF_BOTH = {
    "h264.ts": STREAMS, "ts_called.mp4": STREAMS, "mpeg2.mpg": STREAMS, "mirrored.mp4": MIRRORED,
    "open_groups.mp4": FALSE_KEYS, "open.mp4": FALSE_KEYS, "refreshed.mp4": FALSE_KEYS,
    "b_frames.avi": AVI, "bare.h264": TIMELESS, "b_frames.ts": STREAMS, "open.ts": STREAMS,
}  # fmt: skip
REFUSED_KINDS = {
    "torchcodec": OF_BOTH,
    "decord": OF_BOTH
    | {
        "av1.mp4": AV1, "av1.mkv": AV1, "cut.mp4": HIDDEN, "cut_b_frames.mp4": HIDDEN,
        "turned90.mkv": TURNED, "turned180.mkv": TURNED, "hevc_open.mkv": LATE_KEYS,
        "hevc_layers.mp4": LATE_KEYS, "moving.gif": LENGTHLESS, "moving.png": LENGTHLESS,
        "live.mkv": LENGTHLESS,
    },
}  # fmt: skip


def every(times, duration):
    return np.arange(len(times))


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Path of the video of a kind, written when first asked for."""
    folder = tmp_path_factory.mktemp("read")

    def path(name):
        if not (folder / name).exists():
            try:
                av.Codec(WRITTEN[name].get("codec", "libx264"), "w")
            except av.error.UnknownCodecError as error:
                pytest.skip(f"this PyAV has no encoder {error}")
            write_video(folder / name, **WRITTEN[name])
        return folder / name

    return path


def needed(reader):
    """The package of a reader; skips where it is not whole."""
    try:
        readers.check_reader(reader)
    except ValueError as error:
        pytest.skip(str(error))
    return importlib.import_module(reader if reader == "decord" else "torchcodec.decoders")


def ours(path):
    return open_file(media_of(path), every)


# A. Right, or refused


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("reader", BOTH)
def test_every_kind_is_right_or_refused(reader, name, clip):
    needed(reader)
    reason = REFUSED_KINDS[reader].get(name)
    if reason is not None:
        with pytest.raises(VideoError) as caught:
            open_by(reader, media_of(clip(name)), every)
        assert str(caught.value).startswith(f"{clip(name)}: ") and reason in str(caught.value)
        assert "\n" not in str(caught.value)
        return

    source, right = open_by(reader, media_of(clip(name)), every), load(ours(clip(name)))
    np.testing.assert_array_equal(source.seconds, right.seconds)
    assert (source.duration, source.frame_count) == (right.duration, right.frame_count)
    frames, expected = load(source).frames, right.frames
    assert frames.dtype == np.uint8 and numbers(frames) == numbers(expected)
    if name in ROUNDED:
        assert np.abs(frames.astype(int) - expected).mean((1, 2, 3)).max() < ROUNDED[name]
    else:
        np.testing.assert_array_equal(frames, expected)
    for chosen in (np.arange(len(source))[1::7], np.arange(len(source))[-1:]):
        for frame, i in zip(source.read(chosen), chosen, strict=True):
            np.testing.assert_array_equal(frame, frames[i])


def truncated(path):
    write_video(path, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-2000])


def several_tracks(path):
    """Of which the one with the most bytes is not the one that is shown."""
    rich = write_video(path.with_name("rich.mp4"), options={"crf": "1"})
    large = write_video(path.with_name("large.mp4"), size=(192, 128), options={"crf": "45"})
    join_streams(path, rich, large)


# What the packets do not show to whom it shows: a reason, and a video that stands for it.
WRONG = {
    STREAMS: "h264.ts", MIRRORED: "mirrored.mp4", FALSE_KEYS: "refreshed.mp4", AVI: "b_frames.avi",
    TIMELESS: "bare.h264", TORN: truncated, AV1: "av1.mp4", TURNED: "turned90.mkv",
    HIDDEN: "cut.mp4", LATE_KEYS: "hevc_layers.mp4", TRACKS: several_tracks,
}  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "reason"), [(reader, reason) for reader in REFUSED for reason in REFUSED[reader]]
)
def test_what_is_refused_is_wrong(reader, reason, clip, tmp_path):
    """Should a newer version be right, this fails: then let it read such files."""
    package = needed(reader)
    (how,) = (how for begin, how in WRONG.items() if reason.startswith(begin))
    path = tmp_path / "wrong.mp4"
    path = clip(how) if isinstance(how, str) else how(path) or path
    with pytest.raises(VideoError, match=f"{reader} {reason}, wanted reader='pyav'"):
        open_by(reader, media_of(path), every)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        shown = [(frame.shape, number(frame)) for frame in load(ours(path)).frames]

    def told(i):
        """By a decoder that has not read anything yet."""
        if reader == "decord":
            frame = package.VideoReader(str(path))[i].asnumpy()
        else:
            frame = package.VideoDecoder(str(path), dimension_order="NHWC")[i].numpy()
        return frame.shape, number(frame)

    try:
        told_all = [told(i) for i in range(len(shown))]
    except Exception:
        return  # nor can it be read then
    assert told_all != shown


@pytest.mark.parametrize("reader", BOTH)
def test_files_that_are_elsewhere(reader, clip):
    needed(reader)
    data = clip("b_frames.mp4").read_bytes()
    opened = []

    def open_one():
        opened.append(io.BytesIO(data))
        return opened[-1]

    media = replace(media_of(data), opener=open_one)
    source = open_by(reader, media, every)
    assert numbers(load(source).frames) == list(range(40))
    assert all(file.closed for file in opened)
    count = len(opened)
    frames = source.read(np.arange(40))
    assert len(opened) == count  # nothing is open before the first frame is asked for
    assert number(next(frames)) == 0
    frames.close()
    assert len(opened) > count and all(file.closed for file in opened)
    assert list(source.read(np.arange(0))) == []


@pytest.mark.parametrize("reader", BOTH)
def test_side_by_side(reader, clip):
    needed(reader)
    source = open_by(reader, media_of(clip("b_frames.mp4")), every)
    got = in_threads(lambda: numbers(list(source.read(np.arange(0, 40, 3)))))
    assert got == [list(range(0, 40, 3))] * 4


def in_threads(work):
    done = []
    threads = [threading.Thread(target=lambda: done.append(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return done


class Told(Decoder):
    """What a reader may tell of a video of 40 frames, 10 a second."""

    MADE = ("decord", "Told")

    def __init__(self, count=40, shown=None, decoded=None, shape=(64, 96, 3), kind=np.uint8):
        super().__init__(range(count), "it", threading.Lock())
        self.shown, self.decoded, self.kind, self.shape = shown, decoded, kind, shape
        self.batches = []

    def times(self):
        return self.shown

    def batch(self, indices):
        self.batches.append(len(indices))
        decoded = None if self.decoded is None else self.decoded[indices]
        return np.zeros((len(indices), *self.shape), self.kind), decoded

    source = None


TENTHS = np.arange(40) / 10


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"count": 39}, "counts 39 frames in place of 40"),
        ({"shown": TENTHS * 1.01}, r"shows a frame at 0\.20. s that its packets show at 0\.2 s"),
        ({"shown": TENTHS + np.nan}, "shows a frame at nan s"),
        ({"decoded": TENTHS + 0.002}, r"shows a frame at 0\.002 s that its packets show at 0 s"),
        ({"shape": (96, 64, 3)}, "gives pictures of 64x96 in place of 96x64"),
        ({"kind": np.float32}, r"got float32 \(1, 64, 96, 3\) of decord"),
        ({"shape": (64, 96)}, r"got uint8 \(1, 64, 96\) of decord"),
    ],
)
def test_what_the_packets_do_not_say_is_refused(told, words, clip, monkeypatch):
    pytest.importorskip("decord")
    monkeypatch.setitem(readers._DECODERS, "decord", lambda *_: Told(**told))
    with pytest.raises(VideoError, match=words):
        load(open_by("decord", media_of(clip("h264.mp4")), every))


def test_times_may_be_rounded(clip, monkeypatch):
    pytest.importorskip("decord")
    shown = (1000 + TENTHS + 0.0008).astype(np.float32).astype(float)
    monkeypatch.setitem(readers._DECODERS, "decord", lambda *_: Told(shown=shown))
    source = open_by("decord", media_of(clip("h264.mp4")), every)
    np.testing.assert_allclose(source.seconds, TENTHS, atol=1e-9)  # those of the packets


def test_few_frames_wait(monkeypatch):
    told = Told(count=40)
    monkeypatch.setattr(decoders, "BATCH_BYTES", 5 * 64 * 96 * 3 + 1)
    assert len(list(told.read(np.arange(0, 40, 3)))) == 14
    assert told.batches == [1, 5, 5, 3]
    monkeypatch.setattr(decoders, "BATCH_BYTES", 1)
    assert len(list(told.read(np.arange(3)))) == 3 and told.batches[4:] == [1, 1, 1]


def test_readers_that_are_not_there(clip, monkeypatch):
    media = media_of(clip("h264.mp4"))
    with pytest.raises(ValueError, match=r"reader: got 'opencv', wanted one of \['decord', 'torch"):
        open_by("opencv", media, every)
    with pytest.raises(ValueError, match=r"got 'opencv', wanted one of .*'pyav'"):
        readers.check_reader("opencv")
    readers.check_reader("pyav")

    for reader in BOTH:
        monkeypatch.setitem(sys.modules, reader, None)
        with pytest.raises(ValueError, match=rf"is not installed, .*\(pip install {reader}\)") as e:
            open_by(reader, media, every)
        assert not isinstance(e.value, VideoError)  # it is not the file's fault

    without = types.ModuleType("torchcodec")
    without.ffmpeg_major_version = None
    monkeypatch.setitem(sys.modules, "torchcodec", without)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", without)
    with pytest.raises(ValueError, match="reader: 'torchcodec' finds no FFmpeg here"):
        open_by("torchcodec", media, every)


# B. Decoders that are open already


def tenth(times, duration):
    return Sampling(fps=1).pick(times, duration)


def test_what_is_no_decoder():
    assert all(open_decoder(one, every) is None for one in (7, "a.mp4", np.zeros(3), Told()))


@pytest.mark.parametrize("bridge", ["native", "torch"])
def test_an_open_decord_reader(bridge, clip):
    decord = pytest.importorskip("decord")
    reader = decord.VideoReader(str(clip("uneven.mp4")))
    source = open_decoder(reader, every)
    expected = load(ours(clip("uneven.mp4")))
    decord.bridge.set_bridge(bridge)
    try:
        video = load(source)
    finally:
        decord.bridge.set_bridge("native")
    np.testing.assert_array_equal(video.frames, expected.frames)
    np.testing.assert_allclose(video.seconds, UNEVEN, atol=1e-3)
    assert (video.source, video.is_image, video.frame_count) == ("decord.VideoReader", False, 40)
    assert video.duration > video.seconds[-1]
    assert numbers(list(source.read(np.array([3, 30])))) == [3, 30]


def test_an_open_decord_reader_as_it_was_made(clip):
    decord = pytest.importorskip("decord")
    small = decord.VideoReader(str(clip("h264.mp4")), width=192, height=128)
    video = load(open_decoder(small, tenth))
    assert video.frames.shape == (4, 128, 192, 3) and video.seconds.tolist() == [0, 1, 2, 3]

    class Own(decord.VideoReader):
        """Somebody's own kind of it."""

    assert numbers(load(open_decoder(Own(str(clip("h264.mp4"))), tenth)).frames) == [0, 10, 20, 30]
    # It gives all of these the time 0, but knows how many there are in a second.
    timeless = load(open_decoder(decord.VideoReader(str(clip("b_frames.avi"))), every))
    np.testing.assert_allclose(timeless.seconds, TENTHS, atol=1e-3)
    assert timeless.duration == pytest.approx(4.0)


def test_one_decord_reader_for_all_threads(clip):
    decord = pytest.importorskip("decord")
    reader = decord.VideoReader(str(clip("h264.mp4")))
    got = in_threads(lambda: numbers(load(open_decoder(reader, tenth)).frames))
    assert got == [[0, 10, 20, 30]] * 4


class VideoDecoder:
    """What torchcodec's does, of frames that show their numbers."""

    def __init__(self, times, *, order="NCHW", dtype=torch.uint8, there=None):
        self.times, self.order, self.dtype = np.asarray(times), order, dtype
        self.there = len(times) if there is None else there
        self.asked = []

    def __len__(self):
        return len(self.times)

    def get_frame_at(self, i):
        batch = self.get_frames_at([i])
        return types.SimpleNamespace(pts_seconds=float(batch.pts_seconds[0]), duration_seconds=0.1)

    def get_frames_at(self, indices):
        self.asked += indices
        if max(indices) >= self.there:
            raise RuntimeError("decode, /src/Decoder.cpp:12, Requested next frame\nof none")
        data = torch.zeros(len(indices), 64, 96, 3, dtype=self.dtype)
        data += torch.tensor(indices)[:, None, None, None]
        data = data.permute(0, 3, 1, 2) if self.order == "NCHW" else data
        return types.SimpleNamespace(data=data, pts_seconds=torch.tensor(self.times[indices]))


VideoDecoder.__module__ = "torchcodec.decoders._video_decoder"


def firsts(video):
    return video.frames[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_an_open_torchcodec_decoder(order):
    decoder = VideoDecoder(5 + TENTHS, order=order)
    source = open_decoder(decoder, tenth)
    assert decoder.asked == [39, 0]  # when the last frame is shown, and the first
    video = load(source)
    assert firsts(video) == [0, 10, 20, 30] and video.frames.shape == (4, 64, 96, 3)
    np.testing.assert_allclose(video.seconds, [0, 1, 2, 3])
    assert video.duration == pytest.approx(4.0)
    assert video.source == "torchcodec.VideoDecoder"


def test_uneven_times_come_out_as_frames_are_read():
    decoder = VideoDecoder(UNEVEN)
    source = open_decoder(decoder, tenth)
    with pytest.raises(SourceChanged):
        list(source.read(np.arange(len(source))))
    assert decoder.asked.count(17) == 1  # all were decoded, once
    video = load(source)
    assert decoder.asked.count(17) == 1
    assert firsts(video) == Sampling(fps=1).pick(UNEVEN, UNEVEN[-1] + 0.1).tolist()
    np.testing.assert_allclose(video.seconds, UNEVEN[firsts(video)])


def test_frames_that_were_counted_but_are_not_there():
    video = load(open_decoder(VideoDecoder(TENTHS, there=35), tenth))
    assert video.frame_count == 35 and firsts(video) == [0, 10, 20, 30]
    assert video.duration == pytest.approx(3.5)
    with pytest.raises(VideoError, match=r"^torchcodec\.VideoDecoder: .*\(Requested next frame\)$"):
        open_decoder(VideoDecoder(TENTHS, there=0), tenth)


def test_floats_are_no_frames():
    source = open_decoder(VideoDecoder(TENTHS, dtype=torch.float32), tenth)
    with pytest.raises(
        VideoError, match=r"got float32 \(1, 64, 96, 3\) of torchcodec, wanted 1 ui"
    ):
        load(source)


@pytest.mark.parametrize("how", [{}, {"dimension_order": "NHWC"}])
@pytest.mark.parametrize("name", ["b_frames.mp4", "uneven.mkv", "cut.mp4", "fragments.mp4"])
def test_a_real_torchcodec_decoder(name, how, clip):
    decoder = needed("torchcodec").VideoDecoder(str(clip(name)), **how)
    video, expected = load(open_decoder(decoder, every)), load(ours(clip(name)))
    np.testing.assert_array_equal(video.frames, expected.frames)
    np.testing.assert_allclose(video.seconds, expected.seconds, atol=2e-3)
    assert video.duration == pytest.approx(expected.duration, abs=0.3)


@pytest.mark.parametrize("name", ["b_frames.mp4", "h264.mkv", "fragments.mp4"])
def test_a_real_torchcodec_decoder_that_seeks_approximately(name, clip):
    """It guesses by the rate which frame is the i-th, so gives some twice of a file that does not
    begin at 0."""
    decoder = needed("torchcodec").VideoDecoder(str(clip(name)), seek_mode="approximate")
    video, expected = load(open_decoder(decoder, every)), load(ours(clip(name)))
    places = np.searchsorted(expected.seconds, video.seconds - 2e-3)
    assert len(video.frames) >= 38
    np.testing.assert_allclose(video.seconds, expected.seconds[places], atol=2e-3)
    np.testing.assert_array_equal(video.frames, expected.frames[places])
