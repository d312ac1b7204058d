"""Videos as long as one wants: the packets of a file over and over, none of them encoded anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bvllm_adapters.config import check_count
from bvllm_adapters.frames import SourceChanged, VideoError
from bvllm_adapters.video import open_source


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
    import av  # here, as in the reader

    file = folder / f"{seconds}.mp4"
    try:
        with av.open(str(file), "w") as target:
            shown, passed, out = 0.0, 0, None
            while shown < seconds:
                with av.open(str(video)) as again:
                    stream = again.streams.video[0]
                    if out is None:
                        out = target.add_stream_from_template(stream)
                        out.time_base = stream.time_base
                    length = 0
                    for packet in again.demux(stream):
                        if packet.dts is None or packet.pts is None:  # the end
                            continue
                        length += packet.duration or 0
                        packet.pts, packet.dts = packet.pts + passed, packet.dts + passed
                        packet.stream = out
                        target.mux(packet)
                    if not length or stream.time_base is None:
                        raise VideoError(f"{video}: does not say how long its frames are shown")
                    passed += length
                    shown = float(passed * stream.time_base)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise VideoError(f"{video}: cannot be shown for {seconds} s: {error}") from error
    return file


@contextmanager
def whole(video: str | Path) -> Iterator[None]:
    """VideoError for a file that turns out to be damaged, of which what is measured and what is
    counted would not be the same."""
    try:
        yield
    except SourceChanged as change:
        raise VideoError(f"{video}: is damaged, wanted a whole file") from change
