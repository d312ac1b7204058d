"""Frames that a tower takes several of as one: a source of groups in place of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from bvllm_adapters.video.frames import Frames, FrameSource, Indices, SourceChanged, check_positions

Shown = tuple[Frames, float]
"""A frame, or a group, and its time in seconds."""


def in_groups(source: FrameSource, size: int) -> FrameSource:
    """The same source, whose frames are (size, H, W, 3) each and as many fewer.

    A group's time is the mean of its frames'. Where frames are left over, the last one stands for
    those that are missing. An image, and groups of one, stay as they are.
    """
    if size == 1 or source.is_image:
        return source
    count = -(-len(source) // size)
    member = np.minimum(np.arange(count * size).reshape(count, size), len(source) - 1)

    def read(positions: Indices) -> Iterator[Frames]:
        groups = member[check_positions(positions, count)]
        frames = source.read(np.unique(groups))
        try:
            for group in groups:
                own = [next(frames) for _ in range(len(np.unique(group)))]
                yield np.stack(own + own[-1:] * (size - len(own)))
        except SourceChanged as change:
            raise SourceChanged(in_groups(change.source, size)) from change

    return replace(source, seconds=source.seconds[member].mean(axis=1), read=read)


def whole_groups(shown: Sequence[Shown], size: int) -> tuple[list[Shown], list[Shown]]:
    """Frames as they come, as groups, and those behind that do not make a whole one yet."""
    if size == 1:
        return list(shown), []
    whole = len(shown) - len(shown) % size
    groups = [one_group(shown[i : i + size], size) for i in range(0, whole, size)]
    return groups, list(shown[whole:])


def one_group(shown: Sequence[Shown], size: int) -> Shown:
    """(size, H, W, 3) of these frames, the last in place of those that are missing; mean time."""
    whole = [*shown, *[shown[-1]] * (size - len(shown))]
    return np.stack([frame for frame, _ in whole]), float(np.mean([second for _, second in whole]))
