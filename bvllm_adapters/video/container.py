"""A video file, opened: the track that is shown, its packets and what they decode to.

PyAV is imported, and files opened, within a call: nothing is open when a process forks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from bvllm_adapters.video import limits
from bvllm_adapters.video.boxes import Boxes
from bvllm_adapters.video.kinds import is_motion_jpeg
from bvllm_adapters.video.limits import VideoError
from bvllm_adapters.video.media import Media, readable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    AnyPacket = Packet[VideoStream]

THREADS = min(4, os.cpu_count() or 1)  # decoders at a time; more would crowd DataLoader workers
STRICT = {"err_detect": "explode"}
"""For a decoder that is to report what it would else conceal: what it makes up for what is missing
may depend on where decoding began, and on how its threads meet."""
STILLS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")
"""Codecs of covers, where a file has others too."""
MOST_TIMES = 16  # that a file may show its bytes over again, as an edit list can say
READ_BYTES = 2**18  # at a time


@contextlib.contextmanager
def open_video(
    media: Media, *, strict: bool = False
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and the video track of it that is shown, to be decoded by one thread: of several,
    what a decoder conceals depends on how they meet, and it does not always notice.

    Raises:
        VideoError: for what is no video, has no track that can be decoded, or pictures larger
            than `limits.MAX_PIXELS`.
    """
    import av

    with media.open() as file:
        try:
            # FFmpeg does not know all of these by itself.
            known = "mjpeg" if is_motion_jpeg(file) else None
            file.seek(0)
            container = av.open(_Nameless(file, media.name), format=known, **_alone(av.__version__))
        # FFmpeg's errors, the file's own, and what PyAV makes of names in a damaged head.
        except Exception as error:
            if isinstance(error, VideoError):
                raise
            boxes = Boxes(media)
            reason = "not a video"
            if boxes.is_mp4:
                whole = boxes.has_index and boxes.end <= media.size
                reason = "damaged: its index (moov) cannot be read"
                reason = reason if whole else "truncated: its index (moov) is missing"
            told = getattr(error, "strerror", None) or error
            raise VideoError(f"{media.name}: {reason} ({told})") from error
        with container:
            if container.format.name == "tty":
                raise VideoError(f"{media.name}: not a video (text)")
            stream = shown_track(media, container)
            context = stream.codec_context
            limits.check_picture(media.name, context.width, context.height)
            stream.thread_count = 1
            context.options = {"max_pixels": str(limits.MAX_PIXELS), **(STRICT if strict else {})}
            yield container, stream


def shown_track(media: Media, container: InputContainer) -> VideoStream:
    """The track that is the video: a moving one rather than a picture, the default one if its
    author has said which, the largest, the first."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    tracks = [one for one in container.streams.video if not one.disposition & pictures]
    if not tracks:
        raise VideoError(f"{media.name}: no video stream")
    known = [one for one in tracks if one.codec_context is not None]
    if not known:
        raise VideoError(
            f"{media.name}: no decoder is here for its video: it is encrypted, damaged, or of a "
            "codec that is not known"
        )
    # That the first is the default says nothing: whoever writes a file and does not say has it so.
    said = not known[0].disposition & Disposition.default

    def rank(track: VideoStream) -> tuple[bool, bool, bool, int]:
        context = track.codec_context
        moves = context.codec.canonical_name not in STILLS  # not every file counts its frames
        default = said and bool(track.disposition & Disposition.default)
        return track.frames != 1, moves, default, context.width * context.height

    return max(known, key=rank)


def track_name(container: InputContainer, stream: VideoStream) -> str | None:
    """Which of several video tracks this one is; None: there is one."""
    tracks = container.streams.video
    if len(tracks) == 1:
        return None
    context = stream.codec_context
    size = f"{context.codec.canonical_name} {context.width}x{context.height}"
    return f"{[*tracks].index(stream) + 1} of {len(tracks)}: {size}"


class _Nameless:
    """A file to FFmpeg, which would take names for patterns, and endings for contents."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name, self.tell = file, name, file.tell

    def read(self, size: int) -> bytes:
        with readable(self._name):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with readable(self._name):
            return self._file.seek(offset, whence)


def _alone(version: str) -> dict[str, Any]:
    """For av.open: no playlist or description within the file opens anything else."""
    settings: dict[str, Any] = {
        "container_options": {"protocol_whitelist": "none"},
        "buffer_size": READ_BYTES,
    }
    if int(version.split(".")[0]) < 19:  # later ones do so of themselves, and know no such name
        settings["metadata_errors"] = "ignore"
    return settings


def packets(media: Media, container: InputContainer, stream: VideoStream) -> Iterator[AnyPacket]:
    """Those that hold something, until the file ends or cannot be read further.

    Raises:
        VideoError: more than the file has room for, by an index that lists the same bytes again
            and again.
    """
    import av

    count, held = 0, 0
    # PyAV raises IndexError at the end of a file in which further tracks have turned up.
    with contextlib.suppress(av.FFmpegError, IndexError):
        for packet in container.demux(stream):
            count, held = count + 1, held + packet.size
            if count > media.size or held > MOST_TIMES * media.size + 2**20:
                raise VideoError(
                    f"{media.name}: damaged: it lists more pictures than its {media.size} bytes "
                    "have room for"
                )
            if packet.size:
                yield packet


def decode(stream: VideoStream, packet: AnyPacket | None) -> list[VideoFrame] | None:
    """The frames that come out as a packet goes in, or the last ones for None; None if it cannot
    be decoded."""
    import av

    try:
        return stream.decode(packet)
    except av.FFmpegError:
        return None
