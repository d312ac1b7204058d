"""How fast frames are read, against decord: one a second of a long video, and some of those again.

    python examples/decode_speed.py        (needs decord, 6 GB of memory, 0.3 to 1 GB of disk)

The video is a minute of Big Buck Bunny, forwards and backwards, encoded by x264 with its defaults
and repeated up to --minutes; it is written once, into --work. How much of it need not be decoded
depends on the encoder: with `--preset ultrafast` each frame needs the one before. Both readers read
the same frames, in turn and in this process, each into one array, of which every bit is compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from bvllm_adapters.video.read import open_source

CLIP = Path(__file__).parent / "big_buck_bunny.mp4"
FPS, AGAIN = 30, 32

Pictures = npt.NDArray[np.uint8]
Read = Callable[[npt.NDArray[np.int64]], Pictures]
"""Seconds of the video -> (T, H, W, 3) the frames shown then."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("decode-speed"), help="for the video")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--width", type=int, default=640, help="of the picture, 16:9")
    parser.add_argument("--group", type=int, default=250, help="frames from key frame to key frame")
    parser.add_argument("--preset", default="medium", help="of x264")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    name = f"{args.minutes}-minutes-{args.width}-wide-groups-of-{args.group}-{args.preset}.mp4"
    path = args.work / name
    if not path.exists():
        write(path, args.minutes, args.width, args.group, args.preset)
    print(f"{path}, {path.stat().st_size / 1e6:.0f} MB; {os.cpu_count()} CPUs", flush=True)

    every = np.arange(args.minutes * 60)
    some = np.linspace(0, len(every) - 1, AGAIN).astype(np.int64)
    laps: dict[str, list[tuple[Lap, Lap]]] = {"decord": [], "here": []}
    for _ in range(args.rounds):
        frames = []
        for (name, of), open_reader in zip(laps.items(), (decord, ours), strict=True):
            begin = Lap.now()
            read = open_reader(path)
            frames.append(read(every))
            between = Lap.now()
            frames.append(read(some))
            of.append((between - begin, Lap.now() - between))
            print(f"  {name}: {of[-1][0]}, {of[-1][1]}", flush=True)
        if not (np.array_equal(frames[0], frames[2]) and np.array_equal(frames[1], frames[3])):
            sys.exit(f"{path}: frames differ from those of decord")

    print(f"\n{'medians':24}{'':16}{'decord':>8}{'here':>8}{'times as fast':>15}")
    for part, what in enumerate((f"1 frame/s, {len(every)} frames", f"{AGAIN} of those again")):
        for field, unit in (("wall", "seconds"), ("cpu", "CPU seconds")):
            theirs, here = (median(getattr(lap[part], field) for lap in of) for of in laps.values())
            print(f"{what:24}{unit:16}{theirs:8.2f}{here:8.2f}{theirs / here:15.2f}")
    print(f"no bit differs; load of the machine: {os.getloadavg()[0]:.1f}")


@dataclass(frozen=True)
class Lap:
    """Seconds of the clock, and of all CPUs for this process: a busy machine changes the first."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Lap:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, before: Lap) -> Lap:
        return Lap(self.wall - before.wall, self.cpu - before.cpu)

    def __str__(self) -> str:
        return f"{self.wall:.2f} s ({self.cpu:.2f} of CPU)"


def decord(path: Path) -> Read:
    try:
        from decord import VideoReader
    except ImportError:
        sys.exit("decord: not installed, wanted to compare with (pip install decord)")
    reader = VideoReader(str(path))
    return lambda at: reader.get_batch(at * FPS).asnumpy()


def ours(path: Path) -> Read:
    source = open_source(path, fps=1.0)

    def read(at: npt.NDArray[np.int64]) -> Pictures:
        frames = source.read(at)
        first = next(frames)
        pictures = np.empty((len(at), *first.shape), np.uint8)
        pictures[0] = first
        for i, frame in enumerate(frames, start=1):
            pictures[i] = frame
        return pictures

    return read


def write(path: Path, minutes: int, width: int, group: int, preset: str) -> None:
    """A minute, encoded, as often as it takes."""
    print(f"writing {path}", flush=True)
    size = (width, width * 9 // 16 // 2 * 2)
    with av.open(str(CLIP)) as clip:
        frames = [frame.reformat(*size, format="yuv420p") for frame in clip.decode(video=0)]
    back_and_forth = cycle(frames + frames[-2:0:-1])
    minute = path.with_suffix(".minute.mp4")
    with av.open(str(minute), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"preset": preset})
        (stream.width, stream.height), stream.gop_size = size, group
        for i, frame in enumerate(islice(back_and_forth, 60 * FPS)):
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            frame.pict_type = 0  # not what it was in the clip: the encoder is to choose
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        copy = None
        for i in range(minutes):
            with av.open(str(minute)) as source:
                stream = source.streams.video[0]
                copy = copy or container.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts += round(i * 60 / stream.time_base)
                        packet.dts += round(i * 60 / stream.time_base)
                        packet.stream = copy
                        container.mux(packet)
    minute.unlink()
    part.rename(path)  # whole, or not there


if __name__ == "__main__":
    main()
