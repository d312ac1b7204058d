"""Videos for tests, written by PyAV: each picture shows its own number, so that a test sees
exactly which frames came back, and which way up."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.stream import Disposition

Picture = npt.NDArray[np.uint8]

SIZE = (96, 64)
BRIGHT, DARK = (255, 200, 0), (0, 0, 120)  # red and blue tell RGB from BGR


def picture(number: int, size: tuple[int, int] = SIZE) -> Picture:
    """(H, W, 3) with the 8 bits of `number` as 2 rows of 4 blocks that survive compression."""
    width, height = size
    out = np.empty((height, width, 3), np.uint8)
    for bit in range(8):
        y, x = divmod(bit, 4)
        rows = slice(y * height // 2, (y + 1) * height // 2)
        columns = slice(x * width // 4, (x + 1) * width // 4)
        out[rows, columns] = BRIGHT if number >> bit & 1 else DARK
    return out


def number(picture: Picture) -> int:
    """The number that a picture shows."""
    height, width, _ = picture.shape
    total = 0
    for bit in range(8):
        y, x = divmod(bit, 4)
        y, x = (2 * y + 1) * height // 4, (2 * x + 1) * width // 8
        red, _, blue = picture[y - 3 : y + 4, x - 3 : x + 4].mean((0, 1))
        total |= int(red > blue) << bit
    return total


def numbers(pictures: Picture) -> list[int]:
    return [number(one) for one in pictures]


def write_video(
    path: Path,
    *,
    frames: int = 40,
    fps: int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = SIZE,
    times: Sequence[float] | None = None,
    first: int = 0,
    gop: int = 12,
    turned: int = 0,
    mirrored: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Write pictures 0, 1, ... at `fps`, or at `times` in seconds.

    `first`: number of the first frame on screen if negative: the frames before are cut by an
    edit list, as after cutting an mp4 without encoding it anew. `turned` by 90, 180 or 270
    degrees, or `mirrored`: so stored, with the matrix that makes it upright.
    """
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, stream.gop_size = pixels, gop
        stream.width, stream.height = size if turned in (0, 180) else size[::-1]
        if turned or mirrored:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV reads turned videos but cannot write them")
            stream.set_display_rotation(turned, hflip=mirrored)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            image = np.rot90(picture(i, size), -turned // 90)
            image = np.ascontiguousarray(image[:, ::-1] if mirrored else image)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pixels == "rgb8":  # the encoder of GIF does not convert
                frame = frame.reformat(format=pixels)
            frame.time_base = Fraction(1, fps if times is None else 1000)
            frame.pts = first + i if times is None else round(times[i] * 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, *, cover: bool = False, video: bool = False) -> Path:
    """A second of silence, with a picture as its `cover`, or a `video` stream of no frames."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        assert isinstance(sound, av.AudioStream)
        if cover or video:
            stream = container.add_stream("mjpeg" if cover else "libx264", rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = SIZE
            stream.pix_fmt = "yuvj420p" if cover else "yuv420p"
        if cover:
            stream.disposition = Disposition.attached_pic.value
            container.start_encoding()
            frame = av.VideoFrame.from_ndarray(picture(1), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuvj420p")) + stream.encode(None))
        for i in range(8):
            silence = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            silence.sample_rate, silence.pts = 8000, i * 1024
            silence.planes[0].update(bytes(silence.planes[0].buffer_size))
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    return path


def join_streams(path: Path, *parts: Path) -> Path:
    """The video streams of several files beside each other in one."""
    with av.open(str(path), "w") as container, contextlib.ExitStack() as stack:
        inputs = [stack.enter_context(av.open(str(part))) for part in parts]
        outputs = [container.add_stream_from_template(one.streams.video[0]) for one in inputs]
        for one, output in zip(inputs, outputs, strict=True):
            for packet in one.demux(video=0):
                if packet.dts is not None:
                    packet.stream = output
                    container.mux(packet)
    return path


def write_damaged(path: Path, at: int = 20) -> Path:
    """A video whose frame `at` cannot be decoded, which nothing but decoding shows."""
    write_video(path, gop=1)
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[at]
        path.write_bytes(path.read_bytes().replace(bytes(packet), bytes([255]) * packet.size))
    return path
