"""Other libraries that read videos: decord and torchcodec, for those who want the very frames that
a project saw which reads with one of them; and decoders of theirs that somebody has open already.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bvllm_adapters.checks import check_choice
from bvllm_adapters.video.container import THREADS
from bvllm_adapters.video.frames import (
    Choose,
    Frames,
    FrameSource,
    Indices,
    Times,
    VideoError,
    check_positions,
)
from bvllm_adapters.video.media import Media
from bvllm_adapters.video.readers.decoders import Decoder, Decord, Torchcodec, errors_of
from bvllm_adapters.video.readers.decoders import open_decoder as open_decoder
from bvllm_adapters.video.readers.refused import REFUSED, Looked, look

READERS = ("pyav", *REFUSED)
SLACK = 1e-3  # s, by which a reader's times may differ from those of the packets


def check_reader(reader: str) -> None:
    """ValueError for a `reader` that does not exist, or cannot be loaded here."""
    check_choice("reader", reader, READERS)
    if reader != "pyav":
        _load(reader)


def open_by(reader: str, media: Media, choose: Choose) -> FrameSource:
    """The frames of a video file that `choose` picks, read by "decord" or "torchcodec".

    A reader is right or refuses: a file that it is known to be wrong about, or of which it counts
    other frames or tells other times than the packets do. Its decoder is its own, and so are its
    colours, and what it makes of damage that no packet shows. Decord takes what is not on this disk
    into memory whole.

    Raises:
        ValueError: there is no such reader, or it cannot be loaded here.
        VideoError: for a file that is no video, that the reader cannot read, or that it is refused
            for; also while frames are read.
    """
    check_choice("reader", reader, [*REFUSED])
    _load(reader)
    file = look(media)
    for reason, is_so in REFUSED[reader].items():
        if is_so(file):
            raise _refusal(media, reader, reason)
    opener = _opener(reader, media, file)
    with opener():
        pass  # to refuse now what else would be refused when the first frame is asked for
    index = file.index
    chosen = choose(index.seconds, index.duration)

    def read(positions: Indices) -> Iterator[Frames]:
        return frames(chosen[check_positions(positions, len(chosen))])

    def frames(wanted: Indices) -> Iterator[Frames]:
        if not len(wanted):
            return
        with opener() as decoder:
            for frame in decoder.read(wanted, check_times):
                if frame.shape[:2] != file.shape:
                    (height, width), (high, wide) = frame.shape[:2], file.shape
                    raise _refusal(
                        media,
                        reader,
                        f"gives pictures of {width}x{height} in place of {wide}x{high}",
                    )
                yield frame

    def check_times(positions: Indices, seconds: Times) -> None:
        _check_times(media, reader, seconds, index.seconds[positions])

    return FrameSource(
        seconds=index.seconds[chosen],
        source=media.name,
        is_image=False,
        frame_count=len(index.seconds),
        duration=index.duration,
        read=read,
        track=index.track,
    )


def _opener(
    reader: str, media: Media, file: Looked
) -> Callable[[], contextlib.AbstractContextManager[Decoder]]:
    """To open a file with, as often as it is read; each time its frames are counted again."""
    # An absolute path, as the working directory may become another.
    path = None if media.path is None else str(media.path.absolute())
    seconds = file.index.seconds

    @contextlib.contextmanager
    def opened() -> Iterator[Decoder]:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(media.open()) if path is None else path
            with errors_of(media.name, reader):
                decoder = _DECODERS[reader](source, media.name, file.stream)
                count, told = len(decoder), decoder.times()
            if count != len(seconds):
                raise _refusal(media, reader, f"counts {count} frames in place of {len(seconds)}")
            if told is not None:
                _check_times(media, reader, told - told[0], seconds)
            yield decoder

    return opened


def _check_times(media: Media, reader: str, told: Times, wanted: Times) -> None:
    # Decord's are 32 bits long.
    late = np.abs(told - wanted) > SLACK + np.spacing(wanted.astype(np.float32))
    if late.any() or np.isnan(told).any():
        i = int(np.argmax(late | np.isnan(told)))
        reason = f"shows a frame at {told[i]:g} s that its packets show at {wanted[i]:g} s"
        raise _refusal(media, reader, reason)


def _refusal(media: Media, reader: str, reason: str) -> VideoError:
    return VideoError(f"{media.name}: {reader} {reason}, wanted reader='pyav'")


def _load(reader: str) -> Any:
    """The module of a reader that is installed and whole."""
    try:
        package = importlib.import_module(reader)
        module = package if reader == "decord" else importlib.import_module(f"{reader}.decoders")
    except ModuleNotFoundError as error:
        if error.name != reader:
            raise ValueError(f"reader: {reader!r} cannot be loaded here ({error})") from error
        raise ValueError(
            f"reader: {reader!r} is not installed, wanted it to be (pip install {reader})"
        ) from None
    except Exception as error:  # what a library lacks that it loads shows in many ways
        told = (str(error).splitlines() or [""])[0]
        raise ValueError(f"reader: {reader!r} cannot be loaded here ({told})") from error
    # Since it reads images too it can be imported without FFmpeg; older ones cannot.
    if getattr(package, "ffmpeg_major_version", 0) is None:
        raise ValueError(
            f"reader: {reader!r} finds no FFmpeg here, wanted its shared libraries "
            "(apt install ffmpeg, conda install ffmpeg)"
        )
    return module


def _decord(source: Any, name: str, stream: int) -> Decoder:
    return Decord(_load("decord").VideoReader(source, num_threads=THREADS), name, threading.Lock())


def _torchcodec(source: Any, name: str, stream: int) -> Decoder:
    decoder = _load("torchcodec").VideoDecoder(
        source,
        stream_index=stream,
        dimension_order="NHWC",
        num_ffmpeg_threads=THREADS,
        device="cpu",
        seek_mode="exact",
    )
    return Torchcodec(decoder, name, threading.Lock())


_DECODERS: dict[str, Callable[[Any, str, int], Decoder]] = {
    "decord": _decord,
    "torchcodec": _torchcodec,
}
