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

from bvllm_adapters.video.container import THREADS, decode, open_video
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

AHEAD_FRAMES, AHEAD_BYTES = 8, 2**27
"""Of frames that wait to be taken: at most so many of each decoder, and so many bytes of all."""
RUN_FRAMES = 1024
"""Of several groups in one run, so that what is to be known of a run stays little."""


@dataclass(frozen=True, eq=False)
class Run:
    """Frames that are decoded in one go.

    Args:
        wanted: (N,) when they are shown, ascending. begin: when the key frame is that decoding
            begins with. seek: when that is decoded. end: when the frame of the last packet
            needed is shown. All in ticks.
    """

    wanted: Indices
    begin: int
    seek: int
    end: int


class Plan:
    """How to decode the chosen frames: in which runs, by how many decoders side by side.

    Decoders of one thread each, on groups of their own, wait for nothing, while the threads of
    one decoder wait for each other's frames. But a decoder that may be no more than `depth` frames
    ahead stands still with a group of many until its turn comes: then one has all threads.

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
        side_by_side = len(chosen) <= 2 * self.depth * len(firsts)
        self.cuts = self._cuts(firsts, self.depth if side_by_side else RUN_FRAMES)
        self.decoders = min(THREADS, len(self)) if side_by_side else 1

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
        )


def by_groups(
    media: Media, index: PacketIndex, groups: Groups, chosen: Indices
) -> Iterator[Frames]:
    """The chosen frames, upright, one by one; up to the first that does not come as expected."""
    width, height = index.size
    plan = Plan(groups, chosen, frame_bytes=3 * width * height)
    if plan.decoders == 1:
        yield from _decoded(media, index, map(plan.run, range(len(plan))), THREADS)
        return
    with contextlib.ExitStack() as threads:
        made = []
        for i in range(plan.decoders):
            runs = map(plan.run, range(i, len(plan), plan.decoders))
            frames = _decoded(media, index, runs, 1)
            made.append(threads.enter_context(ahead(frames, plan.depth)))
        for i, count in enumerate(np.diff(plan.cuts).tolist()):
            for _ in range(count):
                frame = next(made[i % plan.decoders], None)
                if frame is None:
                    return
                yield frame


def _decoded(
    media: Media, index: PacketIndex, runs: Iterable[Run], threads: int
) -> Iterator[Frames]:
    upright = Upright(media.name, index.size, index.turn, index.untagged)
    with open_video(media, threads, strict=True) as (container, stream):
        for run in runs:
            left = iter([*run.wanted.tolist(), math.inf])
            wanted = next(left)
            for packet in _needed(container, stream, run):
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
    container: InputContainer, stream: VideoStream, run: Run
) -> Iterator[Packet[VideoStream] | None]:
    """The packets of a run; then None, for which a decoder gives the frames that it holds back."""
    import av

    links, wanted, begun = dependence(container, stream), set(run.wanted.tolist()), False
    with contextlib.suppress(av.FFmpegError, IndexError):  # without packets, no frames will come
        container.seek(run.seek, stream=stream)
        for packet in container.demux(stream):
            begun = begun or packet.pts == run.begin
            # Frames shown before the key frame may depend on what was before it.
            if begun and packet.pts is not None and packet.pts >= run.begin:
                if packet.pts in wanted or links is None or not links.is_spare(packet):
                    yield packet
                if packet.pts == run.end:
                    break
    yield None
