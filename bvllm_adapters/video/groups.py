"""Decoding only what the frames wanted depend on, several groups of pictures side by side.

A group is a key frame with what follows it in the file, up to the next. Groups without a frame
that is wanted are jumped over, and so is the rest of a group after the last one wanted; in
between, packets are left out that no other needs. Frames are known by their times, in ticks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bvllm_adapters.video.container import THREADS, decode, open_video, packets
from bvllm_adapters.video.dependence import dependence
from bvllm_adapters.video.frames import Frames, Indices
from bvllm_adapters.video.media import Media
from bvllm_adapters.video.packets import Groups, PacketIndex
from bvllm_adapters.video.prefetch import ahead
from bvllm_adapters.video.upright import Upright

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

AHEAD_FRAMES, AHEAD_BYTES = 64, 2**27
"""Of frames that wait to be taken: at most so many of each decoder, and so many bytes of all."""
RUN_FRAMES = 8
"""Of several groups in one run: fewer, and decoders would seek for each; more, and one would stand
still until the others have had their turn."""


@dataclass(frozen=True, eq=False)
class Run:
    """Frames that are decoded in one go.

    Args:
        wanted: (N,) when they are shown, ascending. begin: when the key frame is that decoding
            begins with. seek: when that is decoded. end: when the frame of the last packet
            needed is shown. All in ticks.
        place: of the key frame's packet in the file.
    """

    wanted: Indices
    begin: int
    seek: int
    end: int
    place: int


class Plan:
    """How to decode the chosen frames: in which runs, by how many decoders side by side.

    Decoders have one thread each, on groups of their own. The threads of one decoder would wait
    for each other's frames, and do not always notice what they conceal.

    Args:
        groups: of the file. chosen: (N,) indices of its frames, ascending.
        frame_bytes: of a picture.
    """

    def __init__(self, groups: Groups, chosen: Indices, frame_bytes: int) -> None:
        self.groups = groups
        self.pts, self.packet = groups.frame_pts[chosen], groups.frame_packet[chosen]
        self.group = np.searchsorted(groups.key_pts, self.pts, side="right") - 1
        self.depth = min(AHEAD_FRAMES, max(1, AHEAD_BYTES // (THREADS * frame_bytes)))
        firsts = np.flatnonzero(np.diff(self.group, prepend=-1))  # frame wanted of each group
        self.cuts = self._cuts(firsts, min(self.depth, RUN_FRAMES))
        self.decoders = min(THREADS, len(self))

    def _cuts(self, firsts: Indices, most: int) -> Indices:
        """(R + 1,) where runs begin and end, as positions in `chosen`. Groups with nothing to
        leave out between them are one run, of at most `most` frames unless it is a single one."""
        ends = np.maximum.reduceat(self.packet, firsts)
        apart = self.groups.key_packet[self.group[firsts[1:]]] > ends[:-1] + 1
        cuts = [0]
        following = [*firsts[1:].tolist(), len(self.pts)]
        for first, after, gap in zip(firsts[1:].tolist(), following[1:], apart, strict=True):
            if gap or after - cuts[-1] > most:
                cuts.append(first)
        return np.array([*cuts, len(self.pts)])

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def run(self, i: int) -> Run:
        wanted = slice(self.cuts[i], self.cuts[i + 1])
        group = self.group[wanted.start]
        return Run(
            self.pts[wanted],
            begin=int(self.groups.key_pts[group]),
            seek=int(self.groups.key_dts[group]),
            end=int(self.pts[wanted.start + np.argmax(self.packet[wanted])]),
            place=int(self.groups.key_packet[group]),
        )


def by_groups(
    media: Media, index: PacketIndex, groups: Groups, chosen: Indices
) -> Iterator[Frames]:
    """The chosen frames, upright, one by one; up to the first that does not come as expected."""
    width, height = index.size
    plan = Plan(groups, chosen, frame_bytes=3 * width * height)
    if plan.decoders == 1:
        yield from _decoded(media, index, groups, map(plan.run, range(len(plan))))
        return
    with contextlib.ExitStack() as threads:
        made = []
        for i in range(plan.decoders):
            runs = map(plan.run, range(i, len(plan), plan.decoders))
            frames = _decoded(media, index, groups, runs)
            made.append(threads.enter_context(ahead(frames, plan.depth)))
        for i, count in enumerate(np.diff(plan.cuts).tolist()):
            for _ in range(count):
                frame = next(made[i % plan.decoders], None)
                if frame is None:
                    return
                yield frame


def _decoded(
    media: Media, index: PacketIndex, groups: Groups, runs: Iterable[Run]
) -> Iterator[Frames]:
    upright = Upright(media.name, index.size, index.turn, index.untagged)
    with open_video(media, strict=True) as (container, stream):
        for run in runs:
            left = iter([*run.wanted.tolist(), math.inf])
            wanted = next(left)
            for packet in _needed(media, container, stream, groups, run):
                frames = decode(stream, packet)
                if frames is None:
                    return
                for frame in frames:
                    if frame.is_corrupt or frame.pts is None or frame.pts > wanted:
                        return
                    if frame.pts == wanted:
                        yield upright(frame)
                        wanted = next(left)
            if wanted < math.inf:
                return


def _needed(
    media: Media, container: InputContainer, stream: VideoStream, groups: Groups, run: Run
) -> Iterator[Packet[VideoStream] | None]:
    """The packets of a run; then None, for which a decoder gives the frames that it holds back.
    Of a damaged file another place may be found, or other times than were told from the beginning:
    then no more come."""
    import av

    links, wanted, place = dependence(container, stream), set(run.wanted.tolist()), -1
    with contextlib.suppress(av.FFmpegError):  # without packets, no frames will come
        container.seek(run.seek, stream=stream)
        for packet in packets(media, container, stream):
            if place >= 0 or packet.pts == run.begin:
                place = run.place if place < 0 else place + 1
                told = groups.packet_pts[place] if place < len(groups.packet_pts) else None
                if packet.pts is None or packet.pts != told:
                    break
                # Frames shown before the key frame may depend on what was before it.
                if packet.pts >= run.begin:
                    if packet.pts in wanted or links is None or not links.is_spare(packet):
                        yield packet
                    if packet.pts == run.end:
                        break
    yield None
