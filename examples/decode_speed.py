"""How fast frames are read, beside decord and torchcodec: one a second, and some of those again.

    python examples/decode_speed.py     (needs decord or torchcodec, 6 GB of memory, 1 GB of disk)
    python examples/decode_speed.py --minutes 5 20 --preset medium ultrafast

The video is a minute of Big Buck Bunny, forwards and backwards, encoded by x264 with its defaults
and repeated up to --minutes; it is written once, into --work. How much of it need not be decoded
depends on the encoder: with `--preset ultrafast` each frame needs the one before. All readers read
the same frames, in turn and in this process, each into one array, of which every bit is compared.
Each round ours is timed against theirs of the same round, which a busy machine slows alike.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice, product
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from bvllm_adapters.video.read import open_source

CLIP = Path(__file__).parent / "big_buck_bunny.mp4"
FPS, AGAIN = 30, 32

Seconds = npt.NDArray[np.int64]
Pictures = npt.NDArray[np.uint8]
Read = Callable[[Seconds], Pictures]
"""Seconds of the video -> (T, H, W, 3) the frames shown then."""
Open = Callable[[Path], Read]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("decode-speed"), help="for the videos")
    parser.add_argument("--minutes", type=int, nargs="+", default=[60])
    parser.add_argument("--width", type=int, default=640, help="of the picture, 16:9")
    parser.add_argument("--group", type=int, default=250, help="frames from key frame to key frame")
    parser.add_argument("--preset", nargs="+", default=["medium"], help="of x264")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    readers = loaded({"decord": decord, "torchcodec": torchcodec}) | {"here": ours}
    args.work.mkdir(parents=True, exist_ok=True)
    for preset, minutes in product(args.preset, args.minutes):
        name = f"{minutes}-minutes-{args.width}-wide-groups-of-{args.group}-{preset}.mp4"
        path = args.work / name
        if not path.exists():
            write(path, minutes, args.width, args.group, preset)
        print(f"\n{path}, {path.stat().st_size / 1e6:.0f} MB; {os.cpu_count()} CPUs", flush=True)
        measure(path, np.arange(minutes * 60), readers, args.rounds)


def loaded(others: dict[str, Callable[[], Open]]) -> dict[str, Open]:
    """Those that are here to be compared with."""
    found = {}
    for name, load in others.items():
        try:
            found[name] = load()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: left out, as it cannot be loaded ({str(error).splitlines()[0]})")
    if not found:
        sys.exit("wanted decord or torchcodec to compare with (pip install decord)")
    return found


def measure(path: Path, every: Seconds, readers: dict[str, Open], rounds: int) -> None:
    some = np.linspace(0, len(every) - 1, AGAIN).astype(np.int64)
    laps: dict[str, list[tuple[Lap, Lap]]] = {name: [] for name in readers}
    for _ in range(rounds):
        first: tuple[Pictures, Pictures] | None = None
        for name, open_reader in readers.items():
            begin = Lap.now()
            read = open_reader(path)
            pictures = read(every)
            between = Lap.now()
            again = read(some)
            laps[name].append((between - begin, Lap.now() - between))
            print(f"  {name}: {laps[name][-1][0]}, {laps[name][-1][1]}", flush=True)
            first = first or (pictures, again)
            if not (np.array_equal(first[0], pictures) and np.array_equal(first[1], again)):
                sys.exit(f"{path}: frames of {name} differ from those of {next(iter(readers))}")

    for part, what in enumerate((f"1 frame/s, {len(every)} frames", f"{AGAIN} of those again")):
        print(f"\n{what:28}{'seconds':>9}{'CPU s':>9}   times as long as here (least to most); CPU")
        here = [lap[part] for lap in laps["here"]]
        for name, of in laps.items():
            theirs = [lap[part] for lap in of]
            line = f"  {name:26}"
            for field in ("wall", "cpu"):
                line += f"{median(getattr(lap, field) for lap in theirs):9.2f}"
            if name != "here":
                line += f"   {spread(theirs, here, 'wall')}; {spread(theirs, here, 'cpu')}"
            print(line)
    print(f"no bit differs; load of the machine: {os.getloadavg()[0]:.1f}", flush=True)


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


def spread(theirs: Sequence[Lap], here: Sequence[Lap], field: str) -> str:
    """How many times as long theirs took: the median round, and those of least and most."""
    ratios = [getattr(a, field) / getattr(b, field) for a, b in zip(theirs, here, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def decord() -> Open:
    from decord import VideoReader

    def open_reader(path: Path) -> Read:
        reader = VideoReader(str(path))
        return lambda at: reader.get_batch(at * FPS).asnumpy()

    return open_reader


def torchcodec() -> Open:
    from torchcodec.decoders import VideoDecoder

    VideoDecoder(str(CLIP))  # only this needs FFmpeg

    def open_reader(path: Path) -> Read:
        # As many threads as FFmpeg thinks right; it has one where nobody says.
        decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=0)
        return lambda at: decoder.get_frames_at((at * FPS).tolist()).data.numpy()

    return open_reader


def ours(path: Path) -> Read:
    source = open_source(path, fps=1.0)

    def read(at: Seconds) -> Pictures:
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
