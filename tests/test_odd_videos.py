"""Videos as people have them: each kind that has been read wrongly once, and what is right.

`tests/data/media` holds small files of them (96 x 64 unless said); the rest is written here.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media import SIZE, join_streams, numbers, picture, write_video
from PIL import Image

from bvllm_adapters import VideoError, read_video
from bvllm_adapters.video import limits
from bvllm_adapters.video.clock import UNKNOWN, shifts_of
from bvllm_adapters.video.frames import VideoWarning
from bvllm_adapters.video.media import media_of
from bvllm_adapters.video.packets import read_index
from bvllm_adapters.video.read import open_source
from bvllm_adapters.video.sampling import Sampling

NEW_SCALER = int(av.__version__.split(".")[0]) >= 17
CASES = Path(__file__).parent / "data" / "media"


def levels(video: Any) -> list[int]:
    """The mean of each frame, to the nearest multiple of 5."""
    return (video.frames.mean((1, 2, 3)) / 5).round().astype(int).tolist()


# The cases, one by one


@pytest.mark.parametrize("name", ["exif_mjpeg.avi", "anim.avif", "my%20dance.png"])
def test_grey_steps_a_tenth_of_a_second_apart(name: str) -> None:
    video = read_video(CASES / name, fps=None)
    count = 10 if name.endswith("avi") else 5
    if name != "anim.avif" or NEW_SCALER:  # older FFmpegs know not how far its levels range
        assert levels(video) == [5 * i for i in range(count)]
    np.testing.assert_allclose(video.seconds, np.arange(count) / 10)
    assert video.frames.shape[1:] == (64, 96, 3)


def test_no_decoder() -> None:
    with pytest.raises(VideoError, match=r"encrypted\.mp4: no decoder is here for its video"):
        read_video(CASES / "encrypted.mp4")


def test_a_colour_matrix_that_cannot_be_converted() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        video = read_video(CASES / "matrix8.mp4", fps=None)
    if NEW_SCALER:  # older ones take it for another without a word
        (warning,) = told
        assert "matrix8.mp4: names colours" in str(warning.message)
    with av.open(str(CASES / "matrix8.mp4")) as container:
        for frame, read in zip(container.decode(video=0), video.frames, strict=True):
            frame.colorspace = 2  # unspecified
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), read)


def test_a_matrix_of_zeros_turns_nothing() -> None:
    assert read_video(CASES / "zeromatrix.mp4", fps=None).frames.shape == (20, 64, 96, 3)


def test_two_short_streams_joined() -> None:
    video = read_video(CASES / "joined_short.ts", fps=None)
    np.testing.assert_allclose(video.seconds, np.arange(12) / 2, atol=1e-4)
    means = video.frames.mean((1, 2, 3))
    assert (np.diff(means) > 0).all() and video.duration == pytest.approx(6.0)


def test_frames_left_out_of_an_avi() -> None:
    video = read_video(CASES / "dropped.avi", fps=None)
    shown = [*range(5), 15, 16, *range(30, 40)]
    np.testing.assert_allclose(video.seconds, np.array(shown) / 10)
    assert (np.diff(video.frames.mean((1, 2, 3))) > 0).all()


def test_delays_that_nobody_shows() -> None:
    video = read_video(CASES / "delay1.gif", fps=None)
    np.testing.assert_allclose(video.seconds, np.arange(100) / 10)
    assert video.duration == pytest.approx(10.0)


DAMAGED = [
    "damaged_index.ts",
    "media_audio_mpeg4_005_flip_mid.mp4",
    "media_ts_002_rand_range.ts",
    "media_frag_059_zero.mp4",
    "media_vfr_006_flip_mid+tablelie.mp4",
    "made_up.mkv",  # what several threads of one decoder do not always tell
    "threads_differ.avi",
    "seeking_tells_other_times.mp4",
    "out_of_order.mp4",
    "last_is_longer.mp4",  # than those that are lost
]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_the_same_every_time(name: str) -> None:
    with pytest.warns(VideoWarning, match="damaged: could read .* (have errors|out of order)"):
        first = read_video(CASES / name, fps=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        again = read_video((CASES / name).read_bytes(), fps=None)
        sampled = [read_video(CASES / name, fps=fps) for fps in (1, 3)]
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.seconds, again.seconds)
    for fps, video in zip((1, 3), sampled, strict=True):
        chosen = Sampling(fps).pick(first.seconds, first.duration)
        assert video.seconds.tolist() == first.seconds[chosen].tolist()
        at = [first.seconds.tolist().index(second) for second in video.seconds.tolist()]
        np.testing.assert_array_equal(video.frames, first.frames[at])


def test_what_a_decoder_made_up_is_left_out() -> None:
    with pytest.warns(VideoWarning, match="51 frames; 1 of 52 pictures"):
        assert read_video(CASES / "made_up.mkv", fps=None).frame_count == 51


def test_what_a_decoder_conceals_is_told(tmp_path: Path) -> None:
    """Of motion JPEG it says so only if it is asked to report everything."""
    path = write_video(tmp_path / "a.avi", codec="mjpeg", pixels="yuvj420p", frames=5)
    with av.open(str(path)) as container:
        coded = bytes([*container.demux(video=0)][2])
    middle = len(coded) // 2
    harmed = coded[:middle] + bytes(20) + coded[middle + 20 :]
    path.write_bytes(path.read_bytes().replace(coded, harmed))
    with pytest.warns(VideoWarning, match="5 frames; 1 of 5 pictures have errors"):
        assert len(read_video(path, fps=None).frames) == 5


def test_a_head_that_tells_no_codec() -> None:
    with pytest.raises(VideoError, match=r"media_h264_b_026_flip_mid\.mp4: no decoder"):
        read_video(CASES / "media_h264_b_026_flip_mid.mp4")


# Others of these kinds

ONE = 65536
UPRIGHT = [0, 1, 2]


@pytest.mark.parametrize(
    ("matrix", "like"),
    [
        ((0, 0, 0, 0), None),
        ((2 * ONE, 0, 0, ONE), None),
        ((ONE, 0, 0, 0), None),
        ((ONE, ONE, ONE, ONE), None),
        ((46341, 46341, -46341, 46341), None),
        ((3, ONE, -ONE + 2, -5), (0, ONE, -ONE, 0)),
        ((0, 2 * ONE, -ONE, 0), (0, ONE, -ONE, 0)),
        ((-2, -ONE, ONE - 9, 1), (0, -ONE, ONE, 0)),
        ((-ONE + 1, 7, -7, -ONE), (-ONE, 0, 0, -ONE)),
        ((-ONE + 1, 1, 1, ONE), (-ONE, 0, 0, ONE)),
    ],
)
def test_the_nearest_way_to_lay_a_picture_down(
    matrix: tuple[int, ...], like: tuple[int, ...] | None, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "turned.mp4", frames=3)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44

    def turned(a: int, b: int, c: int, d: int) -> Any:
        content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
        return read_video(path, fps=None)

    video = turned(*matrix)
    if like is None:
        assert numbers(video.frames) == UPRIGHT
    else:
        np.testing.assert_array_equal(video.frames, turned(*like).frames)
        assert numbers(video.frames) != UPRIGHT or like == (ONE, 0, 0, ONE)


@pytest.mark.parametrize("lying", range(1, 9))
def test_pictures_of_a_camera_lie_as_their_exif_says(lying: int, tmp_path: Path) -> None:
    exif, written = Image.Exif(), io.BytesIO()
    exif[0x0112] = lying
    Image.fromarray(picture(5)).save(written, "JPEG", quality=95, exif=exif)
    still = read_video(written.getvalue()).frames[0]  # by Pillow
    for frame in read_video(2 * written.getvalue(), fps=None).frames:  # motion JPEG
        assert frame.shape == still.shape
        assert np.abs(frame.astype(int) - still).mean() < 3


@pytest.mark.parametrize("parts", [(1, 6), (2, 6), (3, 3, 3), (6, 1), (6, 2), (30, 5), (5, 30)])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_streams_written_behind_one_another(
    parts: tuple[int, ...], b_frames: int, tmp_path: Path
) -> None:
    options = {"x264-params": f"bframes={b_frames}"}
    joined = b"".join(
        write_video(tmp_path / f"{i}.ts", frames=n, fps=2, options=options).read_bytes()
        for i, n in enumerate(parts)
    )
    (tmp_path / "joined.ts").write_bytes(joined)
    video = read_video(tmp_path / "joined.ts", fps=None)
    assert numbers(video.frames) == [i for n in parts for i in range(n)]
    np.testing.assert_allclose(video.seconds, np.arange(sum(parts)) / 2, atol=1e-4)
    sampled = read_video(tmp_path / "joined.ts")
    assert numbers(sampled.frames) == numbers(video.frames)[::2]


def test_programs_written_behind_one_another(tmp_path: Path) -> None:
    part = write_video(tmp_path / "part.mpg", frames=12, fps=25, codec="mpeg2video").read_bytes()
    (tmp_path / "joined.mpg").write_bytes(2 * part)
    video = read_video(tmp_path / "joined.mpg", fps=None)
    assert numbers(video.frames) == [*range(12), *range(12)]
    np.testing.assert_allclose(video.seconds, np.arange(24) / 25, atol=1e-4)


@pytest.mark.parametrize(
    ("dts", "shifted"),
    [
        ([0, 1, 2, 3], None),
        ([0, 1, -900, 3, 4], None),  # one that is out of line, low or high
        ([0, 1, 900, 3, 4], None),
        ([0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]),
        ([0, UNKNOWN, 2, 0, UNKNOWN, 2], [0, UNKNOWN, 2, 4, UNKNOWN, 6]),
        ([5, 6, 7, 0, 1, 900, 901, 0], [5, 6, 7, 8, 9, 908, 909, 910]),
    ],
)
def test_a_clock_that_was_set_anew(dts: list[int], shifted: list[int] | None) -> None:
    stamps = np.array(dts)
    shifts = shifts_of(stamps, stamps, np.ones(len(stamps), np.bool_))
    if shifted is None:
        assert shifts is None
    else:
        told = stamps != UNKNOWN
        assert (stamps + shifts)[told].tolist() == np.array(shifted)[told].tolist()


def test_a_clock_begins_anew_at_a_key_frame() -> None:
    stamps = np.array([0, 1, 2, 0, 1, 2])
    assert shifts_of(stamps, stamps, np.arange(6) == 0) is None


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("bare.h264", {}),
        ("b_frames.h264", {"options": {"bf": "3"}}),
        ("bare.hevc", {"codec": "libx265", "options": {"x265-params": "log-level=none"}}),
        ("bare.m4v", {"codec": "mpeg4"}),
        ("bare.y4m", {"codec": "rawvideo", "format": "yuv4mpegpipe"}),
        ("vp9.ivf", {"codec": "libvpx-vp9"}),
    ],
)
def test_the_rate_stands_in_the_pictures_own_head(
    name: str, how: dict[str, Any], tmp_path: Path
) -> None:
    video = read_video(write_video(tmp_path / name, frames=12, **how), fps=None)
    assert numbers(video.frames) == list(range(12))
    np.testing.assert_allclose(video.seconds, np.arange(12) / 10)
    assert video.duration == pytest.approx(1.2)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_frames_left_out(codec: str, tmp_path: Path) -> None:
    kept = [*range(5), 15, 16, *range(25, 30)]
    write(tmp_path / "some.avi", kept, codec=codec)
    video = read_video(tmp_path / "some.avi", fps=None)
    assert numbers(video.frames) == kept
    np.testing.assert_allclose(video.seconds, np.array(kept) / 10)
    assert numbers(read_video(tmp_path / "some.avi").frames) == [0, 4, 16]


@pytest.mark.parametrize(
    ("delays", "seconds"),
    [
        (0, [0.0, 0.1, 0.2, 0.3]),
        (10, [0.0, 0.1, 0.2, 0.3]),
        (20, [0.0, 0.02, 0.04, 0.06]),
        ([0, 10, 50, 20], [0.0, 0.1, 0.2, 0.25]),
    ],
)
def test_delays_of_a_gif(delays: Any, seconds: list[float], tmp_path: Path) -> None:
    first, *others = (Image.fromarray(picture(i)) for i in range(4))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=delays)
    video = read_video(tmp_path / "a.gif", fps=None)
    assert numbers(video.frames) == list(range(4))
    np.testing.assert_allclose(video.seconds, seconds)


def test_the_track_that_is_the_video(tmp_path: Path) -> None:
    thumbnails = write_video(tmp_path / "thumbnails.mp4", frames=4, fps=1, size=(48, 32))
    still = write_video(tmp_path / "still.mp4", frames=1, size=(384, 256))
    real = write_video(tmp_path / "real.mp4")
    for before in ([thumbnails], [still], [still, thumbnails]):
        joined = join_streams(tmp_path / "joined.mp4", *before, real)
        video = read_video(joined, fps=None)
        assert numbers(video.frames) == list(range(40))
        assert video.track == f"{len(before) + 1} of {len(before) + 1}: h264 96x64"
        assert open_source(joined).track == video.track
    cover = write_video(
        tmp_path / "cover.mkv", codec="mjpeg", pixels="yuvj420p", frames=1, size=(384, 256)
    )
    for name in ("joined.mkv", "joined.mov"):
        video = read_video(join_streams(tmp_path / name, cover, real), fps=None)
        assert numbers(video.frames) == list(range(40))


def test_a_default_track_goes_before_a_larger_one(tmp_path: Path) -> None:
    large = write_video(tmp_path / "large.mp4", size=(192, 128))
    small = write_video(tmp_path / "small.mp4")
    joined = join_streams(tmp_path / "joined.mp4", large, small)
    assert read_video(joined).frames.shape[1:3] == (128, 192)
    content = bytearray(joined.read_bytes())
    first = content.index(b"tkhd")
    second = content.index(b"tkhd", first + 1)
    content[first + 7] &= ~1  # the track is enabled
    content[second + 7] |= 1
    joined.write_bytes(content)
    assert read_video(joined).frames.shape[1:3] == (64, 96)


def write(
    path: Path,
    shown: Iterable[int],
    *,
    codec: str = "libx264",
    sound: float = 0.0,
    sound_codec: str = "aac",
    **colours: int,
) -> Path:
    """Pictures of these numbers at a tenth of a second each, and `sound` seconds of silence."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        silence: Any = container.add_stream(sound_codec, rate=16000) if sound else None
        for i in shown:
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            for name, value in colours.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if silence is not None:
            kind, samples = ("fltp", 1024) if sound_codec == "aac" else ("s16", 1152)
            for i in range(int(sound * 16000 / samples)):
                part = av.AudioFrame(format=kind, layout="mono", samples=samples)
                part.sample_rate, part.pts = 16000, i * samples
                part.planes[0].update(bytes(part.planes[0].buffer_size))
                container.mux(silence.encode(part))
            container.mux(silence.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.ts", {}),
        ("a.flv", {}),
        ("a.avi", {"codec": "mpeg4", "sound_codec": "mp2"}),
        ("a.mpg", {"codec": "mpeg2video", "sound_codec": "mp2"}),
    ],
)
def test_the_last_frame_stays_while_there_is_sound(
    name: str, codecs: dict[str, str], tmp_path: Path
) -> None:
    if name == "a.mpg":
        pytest.skip("MPEG-2 knows no 10 frames a second")
    path = write(tmp_path / name, range(20), sound=6.0, **codecs)
    video = read_video(path)
    assert numbers(video.frames) == [0, 10, 19]
    assert video.duration == pytest.approx(6.0, abs=0.2)
    assert numbers(read_video(path, start=4.0).frames) == [19]
    short = read_video(write(tmp_path / name, range(20), sound=2.1, **codecs))
    assert numbers(short.frames) == [0, 10] and short.duration == pytest.approx(2.0)


@pytest.mark.parametrize("colorspace", [0, 1, 5, 6, 8, 9, 10, 11, 12, 14])
def test_colours_are_converted_or_told(colorspace: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", range(3), colorspace=colorspace)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert numbers(read_video(path, fps=None).frames) == [0, 1, 2]
    assert all("names colours" in str(one.message) for one in told) and len(told) <= 1


# Nothing but the file itself


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{0}\n#EXT-X-ENDLIST\n"),
        ("a.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{0}\n#EXT-X-ENDLIST\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile part.ts\n"),
        ("a.mkv", "ffconcat version 1.0\nfile '{0}'\n"),
        ("a.sdp", "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
        (
            "a.mpd",
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
            '<Period><AdaptationSet mimeType="video/mp2t"><Representation id="1" bandwidth="1">'
            "<BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        ),
        ("img%02d.png", "x"),
    ],
)
def test_what_names_other_files_opens_none(name: str, text: str, tmp_path: Path) -> None:
    part = write_video(tmp_path / "part.ts", frames=10)
    Path(tmp_path / "img01.png").write_bytes(b"")
    path = tmp_path / name
    path.write_text(text.format(part))
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError, match="not a video"):
            read_video(source)


# Work is bounded


def gif(size: int, count: int) -> bytes:
    """Small changes on a large canvas, 43 bytes each."""
    frame = b"\x21\xf9\x04\x04\x0a\0\0\0\x2c" + struct.pack("<4H", 0, 0, 8, 8) + b"\0\x02\x16"
    frame += bytes.fromhex("8c2d99872a1cdc33a00275ec95faa8de608c04914c01") + b"\0"
    head = b"GIF89a" + struct.pack("<2H", size, size) + b"\x80\0\0\0\0\0\xff\xff\xff"
    return head + count * frame + b";"


def boxes(size: int = 2 * 10**6) -> bytes:
    return b"\0\0\0\x08free" * (size // 8)


def lying(kind: bytes, at: int, value: int) -> Callable[[bytes], bytes]:
    def lie(content: bytes) -> bytes:
        start = content.index(kind) + 4 + at
        return content[:start] + struct.pack(">I", value) + content[start + 4 :]

    return lie


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: gif(5000, 200), "200 pictures of 5000x5000 in 8620 bytes"),
        (lambda _: gif(9000, 2), "9000x9000, wanted 67108864 pixels at most"),
        (lambda mp4: mp4 + boxes(), "boxes hold nothing"),
        (lambda _: boxes(), "boxes hold nothing"),
        (lambda _: struct.pack(">I4s", 2 * 10**6 + 8, b"moov") + boxes(), "boxes hold nothing"),
        (lying(b"stts", 4, 2**31 - 1), "its index (moov) cannot be read"),
        (lying(b"stsz", 8, 2**31 - 1), "its index (moov) cannot be read"),
    ],
)
def test_small_files_of_much(make: Callable[[bytes], bytes], words: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=10)
    path.write_bytes(make(path.read_bytes()))
    for source, name in ((path, str(path)), (path.read_bytes(), "bytes")):
        with pytest.raises(VideoError) as caught:
            read_video(source)
        assert str(caught.value).startswith(f"{name}: ") and words in str(caught.value)


def test_images_of_nothing_but_pieces() -> None:
    """Megabytes of pieces that hold nothing, which Pillow would read one by one."""
    written: dict[str, bytes] = {}
    for kind in ("JPEG", "PNG", "GIF"):
        file = io.BytesIO()
        Image.fromarray(picture(1)).save(file, kind)
        written[kind] = file.getvalue()
    jpeg, png, gif = written.values()
    chunk = struct.pack(">I4sI", 0, b"teSt", zlib.crc32(b"teSt"))
    begins = gif.index(b"\x2c")
    for image, place, piece in (
        (jpeg, 2, b"\xff\xfe\0\2"),  # comments
        (jpeg, 2, b"\xff"),
        (png, 33, chunk),
        (gif, begins, b"\x21\xfe\0"),
    ):
        few, many = (image[:place] + n * piece + image[place:] for n in (1000, 10**6))
        assert numbers(read_video(few).frames) == [1]
        with pytest.raises(VideoError, match=r"bytes: .*pieces that hold next to nothing"):
            read_video(many)


def edited(path: Path, count: int) -> bytes:
    """An mp4 whose edit list shows its first frames so many times."""
    content = bytearray(write_video(path, first=-13).read_bytes())
    start = content.index(b"elst") - 4
    (length,) = struct.unpack_from(">I", content, start)
    edits = struct.pack(">IiI", 400, 0, ONE) * count
    new = struct.pack(">I4sII", 16 + len(edits), b"elst", 0, count) + edits
    for kind in (b"moov", b"trak", b"edts"):
        at = content.index(kind) - 4
        (before,) = struct.unpack_from(">I", content, at)
        struct.pack_into(">I", content, at, before + len(new) - length)
    content[start : start + length] = new
    return bytes(content)


def test_edits_that_show_the_same_again(tmp_path: Path) -> None:
    few = numbers(read_video(edited(tmp_path / "a.mp4", 3), fps=None).frames)
    assert few.count(0) == few.count(1) == 3
    with pytest.raises(VideoError, match="bytes: damaged: it lists more pictures than its"):
        read_video(edited(tmp_path / "a.mp4", 3000))


def test_an_index_of_more_than_the_file_holds(tmp_path: Path) -> None:
    whole = media_of(write_video(tmp_path / "a.mp4"))
    assert whole is not None
    with pytest.raises(
        VideoError, match=r"a\.mp4: damaged: it lists more pictures than its 9 bytes"
    ):
        read_index(replace(whole, size=9))


def test_more_than_is_held_at_once_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(limits, "MAX_BYTES", 10 * 96 * 64 * 3)
    source = open_source(path, fps=None)  # frame by frame
    assert len(list(source.read(np.arange(40)))) == 40
    assert len(read_video(path, fps=2.5).frames) == 10
    with pytest.raises(VideoError, match=r"a\.mp4: its 40 pictures are 0\.0 GiB.*MAX_BYTES"):
        read_video(path, fps=None)
    monkeypatch.setattr(limits, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(VideoError, match=r"a\.mp4: its pictures are 96x64.*MAX_PIXELS"):
        open_source(path)


def test_the_limits_stand_in_the_environment(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    code = "from bvllm_adapters.video import limits; print(limits.MAX_BYTES, limits.MAX_PIXELS)"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"BVLLM_MAX_BYTES": "7", "BVLLM_MAX_PIXELS": "8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "7 8\n"


# What is read from


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4")


def test_bytes_files_and_urls(clip: Path) -> None:
    content = clip.read_bytes()
    whole = read_video(clip, fps=4)
    with clip.open("rb") as file:
        file.seek(7)
        sources: list[tuple[Any, str]] = [
            (content, "bytes"),
            (bytearray(content), "bytes"),
            (memoryview(content), "bytes"),
            (io.BytesIO(content), "BytesIO"),
            (file, str(clip)),
            (clip.as_uri(), clip.as_uri()),
            (f"file://localhost{clip}", f"file://localhost{clip}"),
        ]
        for source, name in sources:
            video = read_video(source, fps=4)
            assert video.source == name and not video.is_image
            np.testing.assert_array_equal(video.frames, whole.frames)
            np.testing.assert_array_equal(video.seconds, whole.seconds)
        assert file.tell() == 7


def test_urls_of_fsspec(clip: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/clip.mp4", clip.read_bytes())
    opened = fsspec.open("memory://clip.mp4", "rb")
    for source in ("memory://clip.mp4", opened):
        video = read_video(source)
        assert numbers(video.frames) == [0, 10, 20, 30]
    assert read_video("memory://clip.mp4").source == "memory://clip.mp4"
    with opened as file:
        assert numbers(read_video(file).frames) == [0, 10, 20, 30]


class Unreadable(io.BytesIO):
    def read(self, *_: Any) -> bytes:
        raise OSError("the line is cut")


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (b"", VideoError, "bytes: the file is empty"),
        (b"no video at all" * 99, VideoError, "bytes: not a video"),
        (io.StringIO("a"), TypeError, "source: got 'StringIO' open in text mode"),
        (Unreadable(b"abc"), VideoError, "Unreadable: .*the line is cut"),
        ("file:///no/such.mp4", VideoError, "file:///no/such.mp4: no such file"),
        ("memory://no/such.mp4", VideoError, "memory://no/such.mp4: cannot be read"),
        ("nosuch://a/b.mp4", VideoError, "nosuch://a/b.mp4: cannot be read"),
        ("https://nowhere.invalid/b.mp4", VideoError, "https://nowhere.invalid/b.mp4: "),
        ("a\0b.mp4", VideoError, "no such file|cannot be read"),
    ],
)
def test_what_cannot_be_read_from(source: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_video(source)


def test_a_closed_file(clip: Path) -> None:
    with clip.open("rb") as file:
        pass
    with pytest.raises(VideoError, match=r"clip\.mp4: wanted a file that is open"):
        read_video(file)


class Cut(io.BytesIO):
    """A line that is cut after so many bytes."""

    left = 10_000

    def read(self, *size: Any) -> bytes:
        data = super().read(*size)
        self.left -= len(data)
        if self.left < 0:
            raise ConnectionError("the line is cut")
        return data


def test_what_stops_being_readable(clip: Path) -> None:
    with pytest.raises(VideoError, match=r"Cut: cannot be read .the line is cut"):
        read_video(Cut(clip.read_bytes() + bytes(50_000)))
    with clip.open("rb") as file:
        source = open_source(file)
    with pytest.raises(VideoError, match=r"clip\.mp4: cannot be read .*closed file"):
        list(source.read(np.arange(4)))
    source = open_source(clip)
    clip.unlink()
    with pytest.raises(VideoError, match=r"clip\.mp4: cannot be read .*No such file"):
        list(source.read(np.arange(4)))


def test_urls_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(VideoError, match=r"s3://a/b\.mp4: wanted a file of this disk, or fsspec"):
        read_video("s3://a/b.mp4")


def test_a_source_that_was_opened_is_taken_as_it_is(clip: Path) -> None:
    source = open_source(clip, fps=2)
    np.testing.assert_array_equal(read_video(source).frames, read_video(clip, fps=2).frames)
