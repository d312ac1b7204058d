"""Still images, folders, lists and animations that Pillow reads: what is a picture, what a video,
and what of damaged ones comes back. Pictures show their own numbers, see media.py."""

from __future__ import annotations

import io
import random
import shutil
import struct
import threading
import tracemalloc
import types
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import SIZE, number, numbers, picture, write_video
from PIL import Image, features

from bvllm_adapters import VideoError, read_video
from bvllm_adapters.video import kinds
from bvllm_adapters.video.animations import is_animation
from bvllm_adapters.video.frames import VideoWarning
from bvllm_adapters.video.media import media_of
from bvllm_adapters.video.read import open_source
from bvllm_adapters.video.stills import in_natural_order, stills_at

HALF = Path(__file__).parent / "data" / "media" / "half.jpg"
LYING = {  # by what Exif says: how to make of an upright picture the one that is stored
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
VIDEO = "a video"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # an older Pillow does not know the name
    writes_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")


def image(i: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(picture(i, size))


def encoded(frame: Image.Image, format: str, **how: Any) -> bytes:
    file = io.BytesIO()
    frame.save(file, format, **how)
    return file.getvalue()


def lying(i: int, orientation: int) -> tuple[Image.Image, Image.Exif]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(np.ascontiguousarray(LYING[orientation](picture(i)))), exif


def is_video(source: Any) -> bool:
    """Whether FFmpeg is to read it."""
    media = media_of(source)
    return stills_at(media) is None and not is_animation(media)


# Contents decide


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_picture_from_anywhere(format: str, tmp_path: Path) -> None:
    data = encoded(image(77), format)
    path = tmp_path / "picture.mp4"
    path.write_bytes(data)
    with path.open("rb") as file:
        for source, name in (
            (path, str(path)),
            (str(path), str(path)),
            (data, "bytes"),
            (file, str(path)),
        ):
            for _ in range(2):
                video = read_video(source)
                assert (video.source, video.is_image, numbers(video.frames)) == (name, True, [77])


@writes_avif
def test_avif(tmp_path: Path) -> None:
    video = read_video(encoded(image(77), "AVIF"))
    assert video.is_image and numbers(video.frames) == [77]
    moving = encoded(image(1), "AVIF", save_all=True, append_images=[image(2)])
    assert is_video(moving) and numbers(read_video(moving, fps=None).frames) == [1, 2]


def test_a_compressed_tiff_from_a_file_without_a_number() -> None:
    data = encoded(image(3), "TIFF", compression="tiff_lzw")
    assert numbers(read_video(io.BytesIO(data)).frames) == [3]


@pytest.mark.parametrize("orientation", LYING)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_upright(format: str, orientation: int, tmp_path: Path) -> None:
    frame, exif = lying(6, orientation)
    data = encoded(frame, format, exif=exif)
    for source in (data, Image.open(io.BytesIO(data))):
        for _ in range(2):
            video = read_video(source)
            assert video.frames.shape[1:] == (64, 96, 3) and numbers(video.frames) == [6]


@pytest.mark.parametrize("format", ["GIF", "PNG"])
def test_animations_that_ffmpeg_reads(format: str) -> None:
    moving = encoded(image(1), format, save_all=True, append_images=[image(2)])
    assert is_video(moving) and numbers(read_video(moving, fps=None).frames) == [1, 2]
    assert numbers(read_video(encoded(image(1), format)).frames) == [1]


def test_flic_is_a_video() -> None:
    pixels = np.zeros((64, 96), np.uint8).tobytes()
    copied = struct.pack("<IH", 6 + len(pixels), 16) + pixels
    frame = struct.pack("<IHH8x", 16 + len(copied), 0xF1FA, 1) + copied
    head = struct.pack("<IHHHHHHI", 128 + 2 * len(frame), 0xAF12, 2, *SIZE, 8, 3, 100)
    moving = head.ljust(128, b"\0") + 2 * frame
    assert is_video(moving) and read_video(moving, fps=None).frames.shape == (2, 64, 96, 3)


# Stills in boxes: HEIC and AVIF


def box(kind: bytes, *within: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, within)), kind) + b"".join(within)


def table(kind: bytes, *within: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24), *within)


def items(
    first: bytes, *others: bytes, properties: tuple[bytes, ...] = (), primary: int = 1
) -> tuple[bytes, ...]:
    """Boxes that say which items there are; those properties are of the first."""
    infos = [
        table(b"infe", struct.pack(">HH", i, 0), kind, b"\0", version=2)
        for i, kind in enumerate((first, *others), 1)
    ]
    places = struct.pack(">IHB", 1, 1, len(properties)) + bytes(range(1, len(properties) + 1))
    return (
        table(b"pitm", struct.pack(">H", primary)),
        table(b"iinf", struct.pack(">H", len(infos)), *infos),
        box(b"iprp", box(b"ipco", *properties), table(b"ipma", places)),
    )


def boxed(brand: bytes, *boxes: bytes, behind: bytes = b"") -> bytes:
    file_type = box(b"ftyp", brand, bytes(4), b"mif1", brand)
    return file_type + table(b"meta", *boxes) + box(b"mdat", bytes(100)) + behind


@pytest.fixture
def without_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(kinds, "importlib", types.SimpleNamespace(import_module=missing))


HEIC_STILLS = {
    "grid": (items(b"grid", b"hvc1", b"hvc1"), "tiled HEIC still, wanted pillow-heif"),
    "overlay": (items(b"iovl", b"hvc1", b"hvc1"), "tiled HEIC still, wanted pillow-heif"),
    "turned": (items(b"hvc1", properties=(box(b"irot", b"\1"),)), "HEIC still, wanted pillow-heif"),
    "mirrored": (items(b"hvc1", properties=(box(b"imir", b"\0"),)), "HEIC still, wanted pillow-he"),
    "cut": (
        items(b"hvc1", properties=(box(b"clap", bytes(32)),)),
        "HEIC still, wanted pillow-heif",
    ),
    "not turned": (items(b"hvc1", properties=(box(b"irot", b"\0"),)), VIDEO),
    "one picture": (items(b"hvc1", b"hvc1"), VIDEO),
    "another turned": (
        items(b"hvc1", b"hvc1", properties=(box(b"irot", b"\1"),), primary=2),
        VIDEO,
    ),
}


@pytest.mark.parametrize("name", HEIC_STILLS)
def test_heic_without_a_reader(name: str, without_readers: None, tmp_path: Path) -> None:
    boxes, words = HEIC_STILLS[name]
    path = tmp_path / "phone.jpg"
    path.write_bytes(boxed(b"heic", *boxes))
    if words == VIDEO:
        assert is_video(path)
    else:
        with pytest.raises(
            VideoError, match=rf"phone\.jpg: {words}.*\(pip install 'pillow-heif'\)"
        ):
            read_video(path)
    with pytest.raises(VideoError, match=r"phone\.jpg: .*HEIC still, wanted pillow-heif"):
        read_video(tmp_path)  # in a folder, where nothing is a video


def test_boxes_with_a_track_are_videos(without_readers: None) -> None:
    grid = items(b"grid", b"hvc1")
    assert is_video(boxed(b"heic", *grid, behind=box(b"moov")))
    motion_photo = box(b"ftyp", b"mp42", bytes(4)) + box(b"moov")
    with pytest.raises(VideoError, match="tiled HEIC"):
        read_video(boxed(b"heic", *grid, behind=motion_photo))
    assert is_video(boxed(b"mp42")[:20] + box(b"moov"))


@pytest.mark.parametrize("cut", range(8, 160, 7))
def test_boxes_cut_off(cut: int, without_readers: None) -> None:
    try:
        assert is_video(boxed(b"heic", *items(b"grid", b"hvc1"))[:cut])
    except VideoError as error:
        assert "HEIC" in str(error)


def test_work_on_boxes_is_bounded() -> None:
    for data in (
        boxed(b"heic", behind=box(b"free") * 500_000),
        boxed(b"heic", box(b"free") * 500_000 + bytes(kinds.META_BYTES)),
    ):
        file = Counting(data)
        assert kinds.boxed_still(file) == kinds.BoxedStill("HEIC", False, False)
        assert file.given < 2**14


@writes_avif
def test_avif_without_a_reader(without_readers: None) -> None:
    still = encoded(image(7), "AVIF")
    assert is_video(still) and numbers(read_video(still).frames) == [7]
    frame, exif = lying(7, 6)
    with pytest.raises(VideoError, match=r"bytes: AVIF still, wanted Pillow 11\.3 .*pillow>=11\.3"):
        read_video(encoded(frame, "AVIF", exif=exif))


def grid_of(tile: bytes, width: int, height: int) -> bytes:
    """An AVIF of 2 x 2 times the picture of another."""
    at = tile.index(b"av1C") - 4
    config = tile[at : at + int.from_bytes(tile[at : at + 4], "big")]
    coded = tile[tile.index(b"mdat") + 4 :]

    def sized(times: int) -> bytes:
        return table(b"ispe", struct.pack(">II", times * width, times * height))

    pixels = table(b"pixi", b"\3\x08\x08\x08")
    properties = box(b"ipco", sized(2), sized(1), config, pixels)
    owned = struct.pack(">I", 5) + struct.pack(">HBBB", 1, 2, 1, 4)
    for i in range(2, 6):
        owned += struct.pack(">HBBBB", i, 3, 2, 0x83, 4)
    infos = [
        table(b"infe", struct.pack(">HH", i, 0), kind, b"\0", version=2)
        for i, kind in enumerate([b"grid"] + [b"av01"] * 4, 1)
    ]
    head = box(b"ftyp", b"avif", bytes(4), b"avif", b"mif1", b"miaf")

    def whole(begin: int) -> bytes:
        places = struct.pack(">HH", 0x4400, 5)
        for i in range(1, 6):
            shift, length = (0, 8) if i == 1 else (8, len(coded))
            places += struct.pack(">HHHII", i, 0, 1, begin + shift, length)
        references = box(b"dimg", struct.pack(">HH4H", 1, 4, 2, 3, 4, 5))
        meta = table(
            b"meta",
            table(b"hdlr", bytes(4), b"pict", bytes(13)),
            table(b"pitm", struct.pack(">H", 1)),
            table(b"iloc", places),
            table(b"iinf", struct.pack(">H", 5), *infos),
            table(b"iref", references),
            box(b"iprp", properties, table(b"ipma", owned)),
        )
        grid = struct.pack(">BBBBHH", 0, 0, 1, 1, 2 * width, 2 * height)
        return head + meta + box(b"mdat", grid, coded)

    return whole(whole(0).index(b"mdat") + 4)


@writes_avif
def test_tiled_avif(without_readers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tiled = grid_of(encoded(image(9), "AVIF"), *SIZE)
    with pytest.raises(VideoError, match=r"bytes: tiled AVIF still, wanted Pillow 11\.3"):
        read_video(tiled)
    monkeypatch.undo()
    frames = read_video(tiled).frames
    assert frames.shape == (1, 128, 192, 3)
    quarters = [frames[0, y : y + 64, x : x + 96] for y in (0, 64) for x in (0, 96)]
    assert numbers(np.stack(quarters)) == [9] * 4


def test_heic_by_pillow_heif(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    large = (256, 192)
    still = heif.from_pillow(image(77, large))
    still.save(tmp_path / "one.heic")
    still.save(tmp_path / "tiled.jpg", tile_size=128)
    if heif.__version__.split(".") >= ["1", "8"]:  # older ones write no tiles
        assert b"grid" in (tmp_path / "tiled.jpg").read_bytes()
    for path in tmp_path.iterdir():
        video = read_video(path)
        assert video.is_image and video.frames.shape == (1, 192, 256, 3)
        assert numbers(video.frames) == [77]
    for orientation in LYING:
        frame, exif = lying(6, orientation)
        turned = heif.from_pillow(frame)
        turned.info["exif"] = exif.tobytes()  # Exif and boxes both say so; it is done once
        file = io.BytesIO()
        turned.save(file)
        assert numbers(read_video(file.getvalue()).frames) == [6]
    (tmp_path / "tiled.jpg").rename(tmp_path / "tiled.heif")
    assert numbers(read_video(tmp_path).frames) == [77, 77]


def test_damaged_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(image(1, (256, 192))).save(file, tile_size=128)
    for mutated in damaged(file.getvalue(), 60):
        frames_or_error(mutated)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(VideoError, match=r"bytes: cannot be read .*MAX_IMAGE_PIXELS = None lifts"):
        read_video(file.getvalue())


# JPEGs one after the other


def jpegs(*pictures: Image.Image, between: bytes = b"", **how: Any) -> bytes:
    return between.join(encoded(one, "JPEG", **how) for one in pictures)


@pytest.mark.parametrize("between", [b"", b"\0", bytes(500), b"\xff\xff"], ids=len)
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"exif": lying(1, 1)[1]}])
def test_motion_jpeg(between: bytes, how: dict[str, Any], tmp_path: Path) -> None:
    frames = [image(i, (640, 480)) for i in (1, 2, 3)]
    path = tmp_path / "camera.jpg"
    path.write_bytes(jpegs(*frames, between=between, **how))
    assert is_video(path) and is_video(jpegs(*frames[:2], **how) + between)
    video = read_video(path, fps=None)
    assert numbers(video.frames) == [1, 2, 3] and not video.is_image
    np.testing.assert_allclose(video.seconds, [0, 0.04, 0.08])


def test_large_motion_jpeg() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 500, 3), np.uint8)
    data = jpegs(Image.fromarray(noise), Image.fromarray(noise), quality=95)
    assert len(data) > 4 * 2**16
    assert is_video(data)
    assert read_video(data[: len(data) // 2]).is_image


def test_a_marker_across_the_edge_of_what_is_read_at_once() -> None:
    one = encoded(image(1), "JPEG")
    begin = one.index(b"\xff\xda") + 2
    begin += int.from_bytes(one[begin : begin + 2], "big")
    long = one[:begin] + b"\x11" * (2**16 - 1) + b"\xff\xd9"
    assert kinds.is_motion_jpeg(io.BytesIO(2 * long))
    assert not kinds.is_motion_jpeg(io.BytesIO(2 * long[:-1]))


def test_one_jpeg_with_something_behind_it() -> None:
    first, second = image(1), image(2)
    small = image(2, (48, 32))
    behind = [
        b"", bytes(99), b"\xff" * 9, b"SEFT", encoded(second, "PNG"), encoded(small, "JPEG"),
        encoded(second, "JPEG")[:-20], encoded(second, "JPEG") + b"depth", b"\0\0\0\x18ftypmp42",
    ]  # fmt: skip
    for data in behind:
        video = read_video(encoded(first, "JPEG") + data)
        assert video.is_image and numbers(video.frames) == [1]
    thumbnail = Image.Exif()
    thumbnail[0x9286] = encoded(second, "JPEG")
    assert numbers(read_video(encoded(first, "JPEG", exif=thumbnail)).frames) == [1]


def test_pictures_that_belong_together_are_one() -> None:
    stereo = encoded(image(1), "MPO", save_all=True, append_images=[image(2)])
    assert b"MPF\0" in stereo
    video = read_video(stereo)
    assert video.is_image and numbers(video.frames) == [1]


def test_a_long_file_of_jpegs_is_not_read_whole() -> None:
    one = encoded(image(1), "JPEG")
    file = Counting(one * 20_000)
    assert kinds.is_motion_jpeg(file)
    assert file.given < 2**21
    junk = Counting(one[:-2] + b"\x12" * (kinds.JPEG_BYTES + 2**22))
    assert not kinds.is_motion_jpeg(junk)
    assert junk.given < kinds.JPEG_BYTES + 2**21


class Counting(io.BytesIO):
    given = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.given += len(data)
        return data


# Animated WebP


def webp(count: int = 6, shown: Any = (100, 200, 50, 0, 10, 100), **how: Any) -> bytes:
    frames = [image(i) for i in range(count)]
    return encoded(
        frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=[*shown], **how
    )


@pytest.mark.parametrize("lossless", [True, False])
def test_animated_webp(lossless: bool, tmp_path: Path) -> None:
    path = tmp_path / "dance.png"
    path.write_bytes(webp(lossless=lossless))
    video = read_video(path, fps=None)
    assert numbers(video.frames) == [0, 1, 2, 3, 4, 5]
    # 0 and 10 ms are shown for 100, as browsers do.
    np.testing.assert_allclose(video.seconds, [0, 0.1, 0.3, 0.35, 0.45, 0.55])
    assert (video.duration, video.frame_count) == (0.65, 6)
    assert (video.source, video.is_image) == (str(path), False)
    sampled = read_video(path.read_bytes(), fps=5, start=0.1)  # 0.1, 0.3 and 0.5 s
    assert numbers(sampled.frames) == [1, 2, 4]
    assert numbers(read_video(path, max_frames=2, fps=None).frames) == [0, 5]


def test_fast_webp() -> None:
    np.testing.assert_allclose(
        read_video(webp(3, (16, 16, 16)), fps=None).seconds, [0, 0.016, 0.032]
    )


def test_webp_frames_are_as_pillow_composites_them() -> None:
    clear = np.zeros((64, 96, 4), np.uint8)
    clear[8:40, 8:40] = 255, 0, 0, 255
    frames = [Image.fromarray(np.roll(clear, 9 * i, axis=1)) for i in range(4)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    expected = []
    with Image.open(io.BytesIO(data)) as moving:
        for i in range(4):
            moving.seek(i)
            expected.append(np.asarray(moving.convert("RGB")))
    np.testing.assert_array_equal(read_video(data, fps=None).frames, expected)


def test_one_webp_frame_is_an_image() -> None:
    single = encoded(image(4), "WEBP", save_all=True)
    assert read_video(single).is_image
    assert numbers(read_video(single).frames) == [4]


def test_webp_again_and_in_threads() -> None:
    source = open_source(webp(), fps=None)
    for chosen in ([3], [0, 5], [], [1, 2], range(6)):
        assert [number(frame) for frame in source.read(np.array(chosen, int))] == list(chosen)
    both = zip(source.read(np.array([1, 4])), source.read(np.array([2, 5])), strict=True)
    assert [(number(a), number(b)) for a, b in both] == [(1, 2), (4, 5)]
    with pytest.raises(ValueError, match="positions"):
        source.read(np.array([2, 1]))
    assert (
        at_once(lambda: [number(frame) for frame in source.read(np.arange(6))]) == [[*range(6)]] * 4
    )


def test_webp_frames_are_not_held() -> None:
    frames = [image(i % 256, (320, 240)) for i in range(60)]
    source = open_source(
        encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), fps=None
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in source.read(np.arange(60))) == 60
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 320 * 240 * 4


def test_truncated_webp(tmp_path: Path) -> None:
    whole = webp(6, [100] * 6)
    starts = [i for i in range(len(whole)) if whole[i : i + 4] == b"ANMF"]
    path = tmp_path / "cut.webp"
    for cut in (len(whole) - 3, len(whole) - 20, starts[4], starts[4] + 5, starts[3] - 2):
        path.write_bytes(whole[:cut])
        left = sum(start <= cut for start in [*starts[1:], len(whole)])
        with pytest.warns(VideoWarning, match=f"cut.webp: truncated: .* {left} frames") as caught:
            video = read_video(path, fps=None)
        assert caught[0].filename == __file__
        assert numbers(video.frames) == list(range(left))
        assert video.duration == pytest.approx(left / 10)
    path.write_bytes(whole[: starts[0] + 12])
    with pytest.raises(VideoError, match=r"cut\.webp: cannot be read"):
        read_video(path)


def test_damaged_webp(tmp_path: Path) -> None:
    whole = webp(6, [100] * 6)
    starts = [i for i in range(len(whole)) if whole[i : i + 4] == b"ANMF"]
    for broken in range(6):
        # Pillow opens it, or does not, or leaves that frame out.
        for begin in (starts[broken] + 40, starts[broken] + 8, starts[broken] + 24):
            data = bytearray(whole)
            data[begin : begin + 4] = b"\xff\xff\xff\xff"
            path = tmp_path / "broken.webp"
            path.write_bytes(data)
            if broken == 0:
                with pytest.raises(VideoError, match=r"broken\.webp: damaged: none of its frames"):
                    read_video(path)
                continue
            for _ in range(2):
                words = rf"broken\.webp: damaged: could read 0.{broken} s, {broken} frames of 0.6 s"
                with pytest.warns(VideoWarning, match=words):
                    video = read_video(path, fps=None)
                assert numbers(video.frames) == list(range(broken))
                assert video.frame_count == broken


def test_webp_of_a_size_that_nobody_has_memory_for() -> None:
    data = bytearray(webp())
    data[24:30] = b"\xff\x3f\0\xff\x3f\0"
    with pytest.raises(VideoError, match=r"bytes: cannot be read .*MAX_IMAGE_PIXELS = None lifts"):
        read_video(bytes(data))


# Folders


def order_of(*names: str) -> list[str]:
    return [path.name for path in in_natural_order(sorted(Path(name) for name in names))]


@pytest.mark.parametrize(
    "names",
    [
        ["frame_0.5.png", "frame_2.png", "frame_10.25.png", "frame_10.5.png"],
        ["0.25.png", "0.5.png", "1.0.png"],
        [f"shot1.{i}.png" for i in range(1, 13)],
        [f"shot1.{i}.png" for i in range(13)],
        ["shot1.1.png", "shot1.3.png", "shot1.10.png"],
        ["shot1.1.png", "shot1.10.png", "shot2.0.png", "shot10.0.png"],
        [f"shot1.{i:04}.png" for i in range(8, 12)],
        ["2024.1.9.png", "2024.1.10.png", "2024.2.1.png"],
        ["v1.2.9_1.png", "v1.2.10_1.png", "v1.2.10_2.png"],
        ["cam1_0.5.png", "cam1_0.75.png", "cam2_0.25.png", "cam10_0.125.png"],
        ["cam1_1.1.png", "cam1_1.10.png", "cam2_1.15.png", "cam2_1.2.png"],
        ["frame1.png", "frame2.png", "Frame10.png", "frame10a.png"],
        ["a1.png", "a1.5.png", "a2.png", "ab.png"],
    ],
)
def test_natural_order(names: list[str]) -> None:
    assert order_of(*reversed(names)) == names


floats = st.floats(0, 1e15, allow_nan=False).filter(lambda x: "e" not in f"{x}")


@given(st.lists(floats | st.integers(0, 2000).map(lambda i: i / 100), min_size=2, unique=True))
def test_decimals_are_in_order(numbers: list[float]) -> None:
    numbers = [number for number in numbers if "e" not in f"{number}"]
    names = {f"frame_{number}.png": number for number in numbers}
    assert [names[name] for name in order_of(*names)] == sorted(numbers)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 9)), min_size=2))
def test_decimals_of_any_length_are_in_order(numbers: list[tuple[float, int]]) -> None:
    names = {Fraction(text): text for text in (f"{x:.{digits}f}" for x, digits in numbers)}
    expected = [f"at {names[number]} s.png" for number in sorted(names)]
    assert order_of(*expected) == expected


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frames").mkdir()
    for i, name in enumerate(["0.25.png", "0.5.pgm", "1.0.webp", "10.5.jpg"]):
        frame = image(i).convert("L") if name.endswith("pgm") else image(i)
        frame.save(tmp_path / "frames" / name)
    monkeypatch.chdir(tmp_path)
    source = open_source("frames/", fps=2)
    assert source.source == "frames/"
    monkeypatch.chdir("/")
    assert [int(frame.mean()) > 0 for frame in source.read(np.arange(4))] == [True] * 4
    monkeypatch.chdir(tmp_path)
    shutil.copy(HALF, "frames/2.jpg")
    with pytest.raises(VideoError, match=r"^frames/2\.jpg: cannot be read \(image file is trunc"):
        read_video("frames")
    (tmp_path / "frames" / "2.jpg").write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"2\.jpg: cannot be read \(no image that Pillow knows\)"):
        read_video(tmp_path / "frames")
    (tmp_path / "none").mkdir()
    with pytest.raises(VideoError, match=r"^\./none/: no images in this folder \(\.png"):
        read_video("./none/")


# Images that were given


def test_half_a_jpeg() -> None:
    for source, name in ((HALF, str(HALF)), (HALF.read_bytes(), "bytes")):
        with pytest.raises(VideoError) as caught:
            read_video(source)
        assert str(caught.value).startswith(f"{name}: cannot be read (image file is truncated")
    with Image.open(HALF) as half, Image.open(io.BytesIO(HALF.read_bytes())) as nameless:
        for _ in range(2):
            with pytest.raises(VideoError) as caught:
                read_video(half)
            assert str(caught.value).startswith(f"image ({HALF}): cannot be read (image file is tr")
            with pytest.raises(VideoError, match=r"^image: cannot be read \(image file is trunc"):
                read_video(nameless)
            with pytest.raises(VideoError) as caught:
                read_video([image(1), half])
            assert str(caught.value).startswith(f"source[1] ({HALF}): cannot be read")


def test_what_pillow_would_take_for_read_the_second_time() -> None:
    """It raises once that a PNG's pixels are broken, and then gives what it has."""
    data = bytearray(encoded(image(1), "PNG"))
    at = data.index(b"IDAT")
    data[at + 40 : at + 44] = b"\xff\xff\xff\xff"
    frame = Image.open(io.BytesIO(bytes(data)))
    for _ in range(3):
        with pytest.raises(VideoError, match="image: cannot be read"):
            read_video(frame)


def test_closed_images(tmp_path: Path) -> None:
    image(1).save(tmp_path / "1.png")
    with Image.open(tmp_path / "1.png") as unread:
        source = open_source(unread)
    with pytest.raises(VideoError, match=r"image \(.*1\.png\): cannot be read"):
        next(source.read(np.arange(1)))
    closed = image(1)
    closed.close()
    with pytest.raises(
        VideoError, match=r"source\[0\]: cannot be read \(Operation on closed image"
    ):
        read_video([closed])


COLOURED = ["P", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
GREY = ["1", "L", "LA", "La", "PA", "I;16", "I;16L", "I;16B", "I;16N"]


@pytest.mark.parametrize("mode", COLOURED)
def test_colours_of_every_mode(mode: str) -> None:
    if mode == "LAB":
        cms = pytest.importorskip("PIL.ImageCms")
        srgb, lab = cms.createProfile("sRGB"), cms.createProfile("LAB")
        frame = cms.profileToProfile(image(77), srgb, lab, outputMode="LAB")
    else:
        through = "RGBA" if mode == "RGBa" else "RGB"
        frame = image(77).convert(through).convert(mode, palette=Image.Palette.ADAPTIVE)
    before = frame.tobytes()
    read_twice = [read_video(frame).frames, read_video([frame]).frames]
    for frames in read_twice:
        assert numbers(frames) == [77]
        assert np.abs(frames[0].astype(int) - picture(77)).max() < 40
    assert (frame.mode, frame.tobytes()) == (mode, before)


@pytest.mark.parametrize("mode", GREY)
def test_greys_of_every_mode(mode: str) -> None:
    if mode.startswith("I;16"):
        values = np.array([[0, 0x8012, 0xFFFF]], ">u2" if mode.endswith("B") else "<u2")
        frame = Image.frombytes(mode, (3, 1), values.tobytes())
        expected = [0, 0x80, 0xFF]
    else:
        grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
        frame = grey.convert({"La": "LA", "PA": "P"}.get(mode, "L")).convert(mode)
        expected = [0, 255, 255] if mode == "1" else [0, 128, 255]
        if mode == "1":
            frame = grey.convert("1", dither=Image.Dither.NONE)
    assert frame.mode == mode
    assert read_video(frame).frames[0, 0].tolist() == [[one] * 3 for one in expected]


def test_colours_under_transparency() -> None:
    for mode, alpha in (("RGBA", 128), ("RGBa", 128), ("LA", 128), ("La", 128)):
        straight = "RGBA" if mode.startswith("R") else "LA"
        values = (200, 100, 50, alpha) if straight == "RGBA" else (200, alpha)
        frame = Image.new(straight, (2, 2), values).convert(mode)
        expected = (200, 100, 50) if straight == "RGBA" else (200, 200, 200)
        assert np.abs(read_video(frame).frames.astype(int) - expected).max() <= 2, mode


def test_sixteen_bits_in_a_pgm() -> None:
    data = b"P5 2 1 65535\n" + np.array([0x8000, 0xFFFF], ">u2").tobytes()
    assert read_video(data).frames[0, 0].tolist() == [[0x80] * 3, [0xFF] * 3]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range(mode: str) -> None:
    with pytest.raises(
        VideoError, match=rf"source\[1\]: pixels of mode {mode} have no known range"
    ):
        read_video([image(0, (8, 8)), Image.new(mode, (8, 8))])


def test_images_without_pixels() -> None:
    with pytest.raises(VideoError, match="image: got 0x5, wanted a pixel at least"):
        read_video(Image.new("RGB", (0, 5)))


def test_the_image_stays_as_it_is() -> None:
    frame, exif = lying(6, 6)
    given_image = Image.open(io.BytesIO(encoded(frame, "JPEG", exif=exif)))
    before = (
        given_image.size,
        given_image.mode,
        dict(given_image.info),
        given_image.getexif()[0x0112],
    )
    assert numbers(read_video(given_image).frames) == numbers(read_video(given_image).frames) == [6]
    after = (
        given_image.size,
        given_image.mode,
        dict(given_image.info),
        given_image.getexif()[0x0112],
    )
    assert before == after


def at_once(work: Any) -> list[Any]:
    """What four threads make of it that begin together."""
    results: list[Any] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait()
        results.append(work())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_read_one_image_that_was_not_read_yet() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8
    for format in ("PNG", "JPEG", "TIFF", "WEBP") * 5:
        data = encoded(Image.fromarray(noise), format, exif=exif)
        expected = read_video(data).frames
        assert expected.shape == (1, 400, 300, 3)
        frame = Image.open(io.BytesIO(data))
        for frames in at_once(lambda frame=frame: read_video(frame).frames):
            np.testing.assert_array_equal(frames, expected)


def test_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(image(5), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        assert numbers(read_video(data).frames) == [5]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 // 2 - 1)
    with pytest.raises(
        VideoError, match=r"bytes: cannot be read \(.*MAX_IMAGE_PIXELS = None lifts"
    ):
        read_video(data)


# Lists


def test_lists_of_arrays_and_images() -> None:
    video = read_video([picture(1), image(2), picture(3)], fps=2)
    assert numbers(video.frames) == [1, 2, 3]
    assert (video.seconds.tolist(), video.duration) == ([0, 0.5, 1], 1.5)
    assert (video.source, video.is_image) == ("list of 3 images", False)


def test_frames_with_their_seconds() -> None:
    pairs = [
        (picture(1), 0.5),
        [image(2), 1],
        (picture(3), Fraction(9, 4)),
        (image(4), np.float32(9)),
    ]
    video = read_video(pairs, fps=3)
    assert numbers(video.frames) == [1, 2, 3, 4]
    assert video.seconds.tolist() == [0.5, 1, 2.25, 9] and video.seconds.dtype == np.float64
    assert (video.duration, video.frame_count, video.is_image) == (9 + 1.25, 4, False)
    assert numbers(read_video(pairs, start=1, end=9).frames) == [2, 3]
    assert numbers(read_video(tuple(pairs), fps=None, max_frames=2).frames) == [1, 4]
    single = read_video([(picture(1), 3)], fps=4)
    assert (single.seconds.tolist(), single.duration) == ([3], 3.25)


A = picture(1)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ([], VideoError, "source: got an empty list"),
        ([A, "b"], TypeError, r"source\[1\]: got str, wanted a PIL image or a uint8 \(H, W"),
        ([A, (A, 1)], TypeError, r"source\[1\]: got tuple, wanted a PIL image"),
        ([(A, 1), A], TypeError, r"source\[1\]: got ndarray, wanted \(frame, second\)"),
        ([(A, 1, 2)], TypeError, r"source\[0\]: got 3 values, wanted \(frame, second\)"),
        ([(A, A)], TypeError, r"(?s)source\[0\]: got second .*\(ndarray\), wanted a number"),
        ([(A, "1")], TypeError, r"source\[0\]: got second '1' \(str\), wanted a number"),
        ([(A, True)], TypeError, r"source\[0\]: got second True \(bool\), wanted a number"),
        ([(A, -0.5)], VideoError, r"source\[0\]: got second -0.5, wanted a finite number >= 0"),
        ([(A, float("nan"))], VideoError, r"source\[0\]: got second nan, wanted a finite number"),
        ([(A, float("inf"))], VideoError, r"source\[0\]: got second inf, wanted a finite number"),
        ([(A, 10**400)], VideoError, r"source\[0\]: got second inf, wanted a finite number"),
        ([(A, 1), (A, 1)], VideoError, r"source\[1\]: got second 1.0, wanted more than 1.0 b"),
        ([(A, 0), (A, 2), (A, 1)], VideoError, r"source\[2\]: got second 1.0, wanted more than 2"),
        ([("a", 1)], TypeError, r"source\[0\]: got str, wanted a PIL image"),
        ([A.astype(float)], VideoError, r"source\[0\]: got float64 \(64, 96, 3\), wanted a uint8"),
        ([A[..., 0]], VideoError, r"source\[0\]: got uint8 \(64, 96\), wanted a uint8 \(H, W, 3\)"),
        ([A[:0]], VideoError, r"source\[0\]: got uint8 \(0, 96, 3\), wanted"),
        ([A, A[1:]], VideoError, r"source\[1\]: 96x63, but source\[0\] is 96x64"),
    ],
)  # fmt: skip
def test_wrong_lists(source: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_video(source)


# Damage


def damaged(data: bytes, count: int) -> list[bytes]:
    """With bytes changed, left out or cut off, most of them where the head is."""
    found = []
    for seed in range(count):
        choice, mutated = random.Random(seed), bytearray(data)
        reach = min(len(data), 300) if seed % 2 else len(data)
        for _ in range(choice.choice([1, 1, 2, 5, 20])):
            mutated[choice.randrange(reach)] = choice.choice([0, 255, choice.randrange(256)])
        if seed % 7 == 0:
            del mutated[choice.randrange(len(data)) :]
        if seed % 9 == 0:
            begin = choice.randrange(reach)
            del mutated[begin : begin + choice.randrange(1, 40)]
        found.append(bytes(mutated))
    return found


def frames_or_error(data: bytes) -> str:
    """What comes of it, the same each time, as bytes and as an image that was not read yet."""
    try:
        frame = Image.open(io.BytesIO(data))
    except Exception:
        frame = None
    outcome = "nothing"
    for source in (data, frame) if frame else (data,):
        try:
            video, again = read_video(source, fps=None), read_video(source, fps=None)
        except VideoError as error:
            assert str(error).startswith("bytes: " if source is data else "image: ")
            outcome = "error"
            continue
        assert video.frames.dtype == np.uint8 and video.frames.shape[-1] == 3
        assert len(video.frames) == len(video.seconds) == len(again.frames)
        np.testing.assert_array_equal(video.frames, again.frames)
        outcome = "frames"
    return outcome


def written() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    how: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "PNG": [("png", {"exif": exif})],
        "JPEG": [("jpg", {"exif": exif}), ("progressive.jpg", {"exif": exif, "progressive": True})],
        "WEBP": [("webp", {"exif": exif})],
        "GIF": [("gif", {})],
        "TIFF": [("tiff", {"exif": exif}), ("lzw.tiff", {"exif": exif, "compression": "tiff_lzw"})],
        "BMP": [("bmp", {})],
        "AVIF": [("avif", {"exif": exif})],
    }
    found = {"moving.webp": webp()}
    for format, all_ways in how.items():
        if format in Image.SAVE or format == "JPEG":
            for name, way in all_ways:
                found[name] = encoded(image(77), format, **way)
    return found


Image.init()
WRITTEN = written()


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_frames_or_an_error(name: str) -> None:
    outcomes = {frames_or_error(data) for data in damaged(WRITTEN[name], 150)}
    assert {"frames", "error"} <= outcomes


@pytest.mark.parametrize("name", ["jpg", "progressive.jpg", "webp"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_exif_does_no_harm(name: str) -> None:
    """The picture is there, whichever way up."""
    data = WRITTEN[name]
    begin = max(data.rfind(b"MM\0*"), data.rfind(b"II*\0"))
    for seed in range(60):
        choice, mutated = random.Random(seed), bytearray(data)
        for _ in range(3):
            mutated[begin + choice.randrange(8, 40)] = choice.randrange(256)
        assert set(read_video(bytes(mutated)).frames.shape[1:]) == {64, 96, 3}


def test_half_an_exif_is_taken_as_none_each_time() -> None:
    """Here, where warnings are errors, Pillow gives up after the orientation."""
    frame, exif = lying(6, 6)
    said = bytearray(exif.tobytes())
    said[15] = 9  # of one entry, which is there
    given_image = Image.open(io.BytesIO(encoded(frame, "WEBP", exif=bytes(said))))
    assert [read_video(given_image).frames.shape for _ in range(3)] == [(1, 96, 64, 3)] * 3


def test_no_program_is_run_for_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(VideoError, match=r"a\.png: not a video"):
        read_video(path)


def test_what_is_known_by_next_to_nothing_is_no_picture(tmp_path: Path) -> None:
    path = write_video(tmp_path / "bare.obu", codec="libsvtav1", frames=12)
    assert numbers(read_video(path, fps=None).frames) == list(range(12))
