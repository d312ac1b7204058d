"""What a file holds whose packets do not tell, or lie: only decoding all of it says."""

from __future__ import annotations

import itertools
import math
from array import array
from dataclasses import dataclass, replace

import numpy as np

from bvllm_adapters.video.clock import DECODING_TIMES, MOST_HELD_BACK, filled, reach
from bvllm_adapters.video.container import decode, open_video, packets
from bvllm_adapters.video.frames import VideoError
from bvllm_adapters.video.media import Media
from bvllm_adapters.video.packets import PacketIndex, shift, step_of


@dataclass(frozen=True)
class Damage:
    """What decoding everything found: how many of how many pictures do not decode as they should,
    and whether frames came in another order than their times have."""

    faulty: int
    pictures: int
    disordered: bool

    def __bool__(self) -> bool:
        return self.faulty > 0 or self.disordered

    def __str__(self) -> str:
        errors = f"; {self.faulty} of {self.pictures} pictures have errors" * (self.faulty > 0)
        return errors + "; its times are out of order" * self.disordered


def index_by_decoding(media: Media, index: PacketIndex) -> tuple[PacketIndex, Damage]:
    """`index` with the times of the frames that do come out, in the one way that is always the
    same: all packets in their order, by a single thread. It conceals what it cannot decode; a
    second decoder reports where. Pictures that are known to be made up are left out, if there are
    any others."""
    times, corrupt = array("d"), bytearray()
    faulty = count = 0
    length = 0.0
    with open_video(media) as plain, open_video(media, strict=True) as strict:
        container, stream = plain
        step, tick = step_of(stream), float(stream.time_base or 1)
        by_dts = container.format.name in DECODING_TIMES
        ends: tuple[None, None] = (None, None)
        both = zip(packets(media, *plain), packets(media, *strict), strict=False)
        for packet, same in itertools.chain(both, [ends]):
            if packet is not None:
                shift(packet, index, count)
                count += 1
            frames, strictly = decode(stream, packet), decode(strict[1], same)
            bad = frames is None or strictly is None
            for frame in frames or ():
                stamp = frame.dts if by_dts else frame.pts
                times.append(math.nan if stamp is None else stamp * tick)
                corrupt.append(bool(frame.is_corrupt))
                bad = bad or bool(frame.is_corrupt)
                length = float((frame.duration or 0) * tick)
            faulty += bad
    if not len(times):
        raise VideoError(f"{media.name}: damaged: none of its {count} pictures can be decoded")
    kept = np.flatnonzero(np.frombuffer(corrupt, np.uint8) == 0)
    kept = kept if len(kept) else np.arange(len(times))
    told = filled(np.frombuffer(times), step)[kept]
    by_time = np.argsort(told, kind="stable")
    disordered = index.timed and not by_dts and bool((np.diff(told) < 0).any())
    if disordered and reach(by_time) <= 2 * MOST_HELD_BACK:
        kept = kept[by_time]
    seconds = told[by_time]
    zero = index.zero if index.groups is not None else float(seconds[0])
    seconds = seconds - zero
    whole = index.timed and not index.truncated  # then what comes last stays until the end
    found = replace(
        index,
        seconds=seconds,
        pts=None,
        groups=None,
        place=kept,
        duration=index.duration if whole else float(seconds[-1]) + (length or step),
    )
    return found, Damage(faulty, count, disordered)
