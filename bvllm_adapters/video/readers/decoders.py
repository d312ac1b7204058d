"""Decoders of decord and torchcodec that are open, as sources of frames.

Neither package is imported here: whoever has such a decoder has imported it.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import numpy as np

from bvllm_adapters.video.frames import (
    Choose,
    Frames,
    FrameSource,
    Indices,
    SourceChanged,
    Times,
    VideoError,
    check_positions,
)

BATCH_BYTES = 2**24  # of frames that are decoded in one go
SLACK = 2e-3  # s, by which frames may be off an even pace: some containers round to milliseconds

CheckTimes = Callable[[Indices, Times], None]
"""(N,) indices of frames and their seconds from the first one, as they were decoded."""


def open_decoder(source: object, choose: Choose) -> FrameSource | None:
    """The frames that `choose` picks of a `decord.VideoReader` or a torchcodec `VideoDecoder`;
    None for anything else.

    It is used where it is, by one thread at a time, with whatever size, track and seek mode it was
    made for, and not beyond a fork. Nothing is refused but what fails. Its own place, as of
    `reader.next()`, moves.

    Torchcodec does not tell the times of frames without decoding them. They are taken to follow
    each other evenly, from the first to the last; should one that is read say otherwise, all are
    decoded once for their times (`SourceChanged`).

    Raises:
        VideoError: it cannot tell its frames' times; while frames are read, it fails.
    """
    for kind in (Decord, Torchcodec):
        bases = type(source).__mro__
        if any((base.__module__.partition(".")[0], base.__name__) == kind.MADE for base in bases):
            return kind(source, ".".join(kind.MADE), _lock_of(source)).source(choose)
    return None


_LOCKS: WeakKeyDictionary[object, threading.Lock] = WeakKeyDictionary()
_NEW_LOCK = threading.Lock()


def _lock_of(decoder: object) -> threading.Lock:
    """The same for all who read with one decoder."""
    with _NEW_LOCK:
        return _LOCKS.setdefault(decoder, threading.Lock())


@contextlib.contextmanager
def errors_of(name: str, reader: str) -> Iterator[None]:
    """Whatever a reader has against a file becomes a VideoError of one line."""
    try:
        yield
    except (VideoError, SourceChanged):
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        told = re.sub(r"^.*\.(cc|cpp|h):\d+[:,] *", "", first)  # where in its own source it was
        raise VideoError(f"{name}: {reader} cannot read it ({told:.200})") from error


class Decoder(ABC):
    """A decoder that is open.

    Args:
        decoder: of decord or torchcodec.
        name: of what it reads, for errors.
        lock: held while it decodes, as neither library lets two threads do so at once.
    """

    MADE: ClassVar[tuple[str, str]]  # by which package, as which class

    def __init__(self, decoder: Any, name: str, lock: threading.Lock) -> None:
        self.decoder, self.name, self.lock = decoder, name, lock

    def __len__(self) -> int:
        return len(self.decoder)

    @abstractmethod
    def times(self) -> Times | None:
        """(T,) s of all frames, on the file's own clock; None: only decoding tells."""

    @abstractmethod
    def batch(self, indices: list[int]) -> tuple[Any, Times | None]:
        """(N, H, W, 3) frames, and (N,) s from the first frame if decoding tells that."""

    @abstractmethod
    def source(self, choose: Choose) -> FrameSource:
        """See `open_decoder`."""

    def read(
        self, wanted: Indices, check: CheckTimes = lambda indices, times: None
    ) -> Iterator[Frames]:
        """The frames at these (N,) indices, ascending, one by one; no more than BATCH_BYTES of
        them, or one, are decoded ahead."""
        shape: tuple[int, ...] | None = None
        at, count = 0, 1
        while at < len(wanted):
            part = wanted[at : at + count]
            with self.lock, errors_of(self.name, self.MADE[0]):
                frames, times = self.batch(part.tolist())
            shape = shape or frames.shape[1:]
            good = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
            if not good or frames.shape != (len(part), *shape):
                raise VideoError(
                    f"{self.name}: got {frames.dtype} {frames.shape} of {self.MADE[0]}, wanted "
                    f"{len(part)} uint8 (H, W, 3) frames of one size"
                )
            if times is not None:
                check(part, times)
            yield from frames
            at, count = at + len(part), max(1, BATCH_BYTES // frames[0].nbytes)

    def _source(
        self, seconds: Times, duration: float, choose: Choose, check: CheckTimes | None = None
    ) -> FrameSource:
        chosen = choose(seconds, duration)

        def read(positions: Indices) -> Iterator[Frames]:
            wanted = chosen[check_positions(positions, len(chosen))]
            return self.read(wanted) if check is None else self.read(wanted, check)

        return FrameSource(seconds[chosen], self.name, False, len(seconds), duration, read)


class Decord(Decoder):
    """See `Decoder`."""

    MADE = ("decord", "VideoReader")

    def times(self) -> Times:
        return self._spans()[:, 0]

    def _spans(self) -> Times:
        """(T, 2) s when each frame appears and when it goes."""
        spans = self.decoder.get_frame_timestamp(range(len(self)))
        return np.asarray(spans, np.float64).reshape(len(self), 2)

    def batch(self, indices: list[int]) -> tuple[Any, None]:
        # As its bridge is set: its own kind of array, or that of another library, perhaps on a GPU.
        frames = self.decoder.get_batch(indices)
        if hasattr(frames, "asnumpy"):
            return frames.asnumpy(), None
        return np.asarray(frames.cpu() if hasattr(frames, "cpu") else frames), None

    def source(self, choose: Choose) -> FrameSource:
        with self.lock, errors_of(self.name, "decord"):
            spans, rate = self._spans(), float(self.decoder.get_avg_fps())
        seconds, step = spans[:, 0] - spans[0, 0], 1 / rate if rate > 0 else 0.0
        if not (np.isfinite(seconds).all() and (np.diff(seconds) > 0).all()):
            # As of AVI, of which it does not know when frames are shown.
            if not step:
                raise VideoError(f"{self.name}: tells neither times nor a rate of its frames")
            seconds = np.arange(len(seconds)) * step
        end = float(spans[-1, 1] - spans[0, 0])
        last = float(seconds[-1])
        return self._source(seconds, end if last < end < np.inf else last + step, choose)


class Torchcodec(Decoder):
    """See `Decoder`."""

    MADE = ("torchcodec", "VideoDecoder")

    @functools.cached_property
    def _zero(self) -> float:
        """s on the file's own clock at which the first frame is shown."""
        return float(self.decoder.get_frame_at(0).pts_seconds)

    def times(self) -> None:
        return None

    def batch(self, indices: list[int]) -> tuple[Any, Times]:
        got = self.decoder.get_frames_at(indices)
        frames = got.data.cpu().numpy()
        if frames.ndim == 4 and frames.shape[1] == 3:  # (N, 3, H, W)
            frames = frames.transpose(0, 2, 3, 1)
        return frames, got.pts_seconds.numpy() - self._zero

    def source(self, choose: Choose) -> FrameSource:
        with self.lock, errors_of(self.name, "torchcodec"):
            try:
                last = self.decoder.get_frame_at(len(self) - 1)
            except Exception:
                # By approximate seeking it may have counted frames that are not there.
                return self._source(*self._decoded_times(), choose)
            end = last.pts_seconds - self._zero
            seconds = np.linspace(0.0, end, len(self))
        step = last.duration_seconds or end / max(1, len(self) - 1)

        @functools.cache  # to decode once
        def changed() -> FrameSource:
            with self.lock, errors_of(self.name, "torchcodec"):
                times, duration = self._decoded_times()
            return self._source(times, duration, choose)

        def check(indices: Indices, times: Times) -> None:
            if (np.abs(times - seconds[indices]) > SLACK).any():
                raise SourceChanged(changed())

        return self._source(seconds, end + step, choose, check)

    def _decoded_times(self) -> tuple[Times, float]:
        """(T,) s of all frames that can be decoded, from the first, and when the last one ends."""
        times, length = array("d"), 0.0
        for i in range(len(self)):
            try:
                frame = self.decoder.get_frame_at(i)
            except Exception:
                if not times:
                    raise
                break
            times.append(frame.pts_seconds - self._zero)
            length = frame.duration_seconds
        seconds = cast(Times, np.maximum.accumulate(np.frombuffer(times)))
        return seconds, float(seconds[-1]) + (
            length or float(seconds[-1]) / max(1, len(seconds) - 1)
        )
