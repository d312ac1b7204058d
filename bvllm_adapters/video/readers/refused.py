"""What decord and torchcodec get wrong without saying so, and how such files are known.

A reader that seeks to a key frame counts on where that stands: decord on as many frames being shown
before it as packets stand before it, torchcodec on its time. Neither holds of every file.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bvllm_adapters.video.clock import UNKNOWN
from bvllm_adapters.video.container import open_video, packets
from bvllm_adapters.video.dependence import dependence
from bvllm_adapters.video.media import Media
from bvllm_adapters.video.packets import PacketIndex, read_index


@dataclass(frozen=True, eq=False)
class Looked:
    """What a file's head and packets say that another reader may get wrong.

    Args:
        index: see `read_index`.
        container, codec: FFmpeg's names of them.
        stream: which of all streams is the video that is shown. tracks: how many videos there are.
        hidden: whether an edit list hides frames.
        late_keys: whether after a key frame come packets of frames that are shown before it.
        false_keys: whether the container marks key frames at which decoding cannot begin.
        delayed: whether frames are stored in another order than they are shown in.
    """

    index: PacketIndex
    container: str
    codec: str
    stream: int
    tracks: int
    hidden: bool
    late_keys: bool
    false_keys: bool
    delayed: bool

    @property
    def is_mp4(self) -> bool:
        return self.container.startswith("mov,")

    @property
    def mirrored(self) -> bool:
        return self.index.turn is not None and np.linalg.det(self.index.turn) < 0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        width, height = self.index.size
        upended = self.index.turn is not None and self.index.turn[0, 0] == 0
        return (width, height) if upended else (height, width)


Refused = Mapping[str, Callable[[Looked], bool]]

BOTH: Refused = {
    "mixes up the frames of MPEG transport and program streams": (
        lambda file: file.container in ("mpegts", "mpeg")
    ),
    "takes frames of AVI for shown in the order in which they are stored": (
        lambda file: file.container == "avi" and file.delayed
    ),
    "finds no frames in files that tell no times": lambda file: not file.index.timed,
    "does not tell what truncated or damaged files lack": lambda file: file.index.pts is None,
    "does not mirror pictures that are stored mirrored": lambda file: file.mirrored,
    "begins to decode at frames that need others before them": lambda file: file.false_keys,
}

REFUSED: Mapping[str, Refused] = {
    "decord": {
        **BOTH,
        "has no decoder for AV1": lambda file: file.codec == "av1",
        "turns pictures that are stored turned in mp4 and mov files only": (
            lambda file: file.index.turn is not None and not file.is_mp4
        ),
        "shows frames that an edit list hides": lambda file: file.hidden,
        "miscounts frames where some come after a key frame and are shown before it": (
            lambda file: file.late_keys
        ),
        "may read another of several tracks than is shown": lambda file: file.tracks > 1,
    },
    "torchcodec": BOTH,
}
"""Reader -> why -> whether that is so of a file. A reader is wrong in each of these ways, as tests
show: what a newer version mends comes out there."""


def look(media: Media) -> Looked:
    """At the head and the packets of a file.

    Raises:
        VideoError: for a file that is no video, or holds no frames.
    """
    from av.stream import Disposition

    index = read_index(media)
    pts, keys = array("q"), array("q")
    hidden = false_keys = False
    with open_video(media) as (container, stream):
        links = dependence(container, stream)
        for place, packet in enumerate(packets(media, container, stream)):
            pts.append(UNKNOWN if packet.pts is None else packet.pts)
            hidden = hidden or packet.is_discard
            if packet.is_keyframe:
                keys.append(place)
                false_keys = false_keys or (links is not None and not links.begins(packet))
        context, pictures = (
            stream.codec_context,
            Disposition.attached_pic | Disposition.timed_thumbnails,
        )
        order = np.argsort(np.frombuffer(pts, np.int64), kind="stable")
        return Looked(
            index=index,
            container=container.format.name,
            codec=context.codec.canonical_name,
            stream=stream.index,
            tracks=sum(not one.disposition & pictures for one in container.streams.video),
            hidden=hidden,
            late_keys=bool((order[np.asarray(keys)] != np.asarray(keys)).any()),
            false_keys=false_keys,
            delayed=bool(context.has_b_frames),
        )
