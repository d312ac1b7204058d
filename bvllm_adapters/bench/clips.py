"""Videos as long as one wants: the packets of a file over and over, none of them encoded anew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bvllm_adapters.checks import check_count
from bvllm_adapters.video.frames import SourceChanged, VideoError
from bvllm_adapters.video.read import open_source

if TYPE_CHECKING:
    from av.packet import Packet


def at_least(video: str | Path, seconds: int, folder: Path) -> Path:
    """A file that shows `video` for as many seconds: itself or, where it ends before, a new one.

    Args:
        folder: for the new file.

    Raises:
        VideoError: the file cannot be read, or its packets cannot be put into an mp4.
    """
    check_count("seconds", seconds)
    source = open_source(video, fps=1.0)
    if source.duration >= seconds:
        return Path(video)
    too_short = (
        f"{video}: cannot be shown for {seconds} s by repeating its {source.duration:g} s; "
        "wanted no more than that"
    )
    try:
        file = _again(Path(video), source.duration, seconds, folder)
        repeated = open_source(file, fps=1.0)
        frames = round(source.frame_count * repeated.duration / source.duration)
        whole = abs(repeated.frame_count - frames) <= 1 and repeated.duration >= seconds
    except (OSError, ValueError) as error:  # PyAV's errors are both
        raise VideoError(f"{too_short} ({error})") from error
    if not whole:
        raise VideoError(too_short)
    return file


def _again(video: Path, duration: float, seconds: int, folder: Path) -> Path:
    """A file of the same format, in which the packets come as often as it takes."""
    import av  # here, as in the reader

    file = folder / f"{seconds}{video.suffix}"
    with av.open(str(file), "w") as target:
        out = None
        for i in range(math.ceil(seconds / duration)):
            with av.open(str(video)) as source:
                stream = source.streams.video[0]
                assert stream.time_base is not None
                out = out or target.add_stream_from_template(stream)
                passed = round(i * duration / stream.time_base)
                for packet, pts, dts in _timed(source.demux(stream)):
                    packet.pts, packet.dts = pts + passed, dts + passed
                    packet.stream = out
                    target.mux(packet)
    return file


def _timed(packets: Iterable[Packet[Any]]) -> Iterator[tuple[Packet[Any], int, int]]:
    """Packets, when each is shown and when it is decoded. Matroska does not say the latter of the
    first ones; they are decoded just before those of which it does."""
    first: list[tuple[Packet[Any], int]] = []
    known = False
    for packet in packets:
        if packet.pts is None:  # the end
            continue
        if known or packet.dts is not None:
            for i, (early, pts) in enumerate(first):
                yield early, pts, (packet.dts or 0) - len(first) + i
            first, known = [], True
            yield packet, packet.pts, packet.pts if packet.dts is None else packet.dts
        else:
            first.append((packet, packet.pts))
    for packet, pts in first:  # of a file that says it of no packet
        yield packet, pts, pts


@contextmanager
def whole(video: str | Path) -> Iterator[None]:
    """VideoError for a file that turns out to be damaged, of which what is measured and what is
    counted would not be the same."""
    try:
        yield
    except SourceChanged as change:
        raise VideoError(f"{video}: is damaged, wanted a whole file") from change
