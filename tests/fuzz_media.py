"""Damaged video files of many kinds: the same pictures however they are asked for, or one error.

`python tests/fuzz_media.py --keep FOLDER` prints what became of 2,250 files, then each fault;
`--only open_groups.mp4:17` does one of them again. Each file is read by a process of its own,
forked from this one, in which nothing of PyAV is ever open.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, cast
from unittest import mock

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from bvllm_adapters.video import Video, VideoError, VideoWarning, read_video
from bvllm_adapters.video.sampling import Sampling

FORK = get_context("fork")
WALL = 20  # s, of a clock as of a processor, for a file that takes 0.05 s if nothing is wrong
MEMORY = 17 * 2**28  # bytes of addresses: 4 GiB, and a quarter for what imports take
FAULTS = ["foreign", "nameless", "crash", "hang", "memory"]
FAULTS += ["difference, silent", "difference, warned"]

PLAIN = {"x264-params": "asm=0"}  # with AVX-512 it may write other bytes each time
B_FRAMES = {"bf": "3", "x264-params": "asm=0:b-adapt=0"}
OPEN_GROUPS = {"x264-params": "asm=0:open-gop=1:bframes=3:b-adapt=0:keyint=12:scenecut=0"}
UNEVEN = np.cumsum([0.0] + [0.1, 0.5, 0.04, 0.16, 0.3, 0.1] * 10)[:60].tolist()
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
TABLES_FIRST = {"movflags": "faststart"}  # so that they are found whatever happens to the pictures
KINDS: dict[str, dict[str, Any]] = {
    "b_frames.mp4": {"options": B_FRAMES},
    "open_groups.mp4": {"options": OPEN_GROUPS, "container_options": TABLES_FIRST},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "h264.mkv": {"options": B_FRAMES},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "10"}},
    "h264.ts": {"options": B_FRAMES},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "moving.gif": {"codec": "gif", "pixels": "rgb8"},
    "fragments.mp4": {"options": PLAIN, "container_options": FRAGMENTS},
    "cut.mp4": {"first": -13, "options": B_FRAMES, "container_options": TABLES_FIRST},
    "uneven.mp4": {"options": PLAIN, "times": UNEVEN, "container_options": TABLES_FIRST},
    "h264.flv": {"options": PLAIN},
    "sound.mp4": {"options": PLAIN},
}


def write_seeds(folder: Path, kinds: Iterable[str]) -> None:
    """Two whole files of each kind. A square of noise moves over their pictures, so that each
    packet has something to damage. Without bitexact, some have random numbers in their heads."""
    import media

    plain = media.picture

    def noisy(number: int, size: tuple[int, int]) -> media.Picture:
        picture = plain(number, size)
        y, x = number * 3 % (size[1] - 24), number * 5 % (size[0] - 24)
        picture[y:, x:][:24, :24] = np.random.default_rng(number).integers(0, 256, (24, 24, 3))
        return picture

    for kind, second in itertools.product(kinds, (False, True)):
        path, how = folder / f"{'second_' * second}{kind}", {"frames": 60, **KINDS[kind]}
        how["container_options"] = {"fflags": "+bitexact", **how.get("container_options", {})}
        with mock.patch("media.picture", lambda i, size, s=second: noisy(100 * s + i, size)):
            media.write_video(path, **how)
        if kind == "sound.mp4":
            add_sound(path, media.write_sound(folder / "sound.m4a"))


def add_sound(path: Path, sound: Path) -> None:
    silent = path.rename(path.with_name("silent.mp4"))
    with av.open(str(path), "w") as joined, av.open(str(silent)) as one, av.open(str(sound)) as two:
        streams = [(part, joined.add_stream_from_template(part.streams[0])) for part in (one, two)]
        for part, stream in streams:
            for packet in part.demux(0):
                if packet.dts is not None:
                    packet.stream = stream
                    joined.mux(packet)


Mutation = Callable[[bytes, random.Random, bytes], bytes]  # the last: another file of the kind
MASKS = (1, 2, 4, 8, 16, 32, 64, 128, 255)
TABLES = b"stts|ctts|stss|stsz|stsc|stco|elst|tkhd|mdhd|mvhd|trun|tfhd|tfdt|trex"
NUMBERS = (0, 1, 2, 7, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def replaced(new: Callable[[bytes, random.Random], bytes]) -> Mutation:
    """Of some part, of a byte to a quarter of the file, short ones as often as long ones."""

    def mutation(data: bytes, rng: random.Random, other: bytes) -> bytes:
        length = int((len(data) / 4 + 1) ** rng.random())
        begin = rng.randrange(max(1, len(data) - length))
        part = data[begin : begin + length]
        return data[:begin] + new(part, rng) + data[begin + length :]

    return mutation


def flipped_in_the_middle(data: bytes, rng: random.Random, other: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(2, 20)):
        out[(len(data) + rng.randrange(2 * len(data))) // 4] ^= rng.randint(1, 255)
    return bytes(out)


def tampered(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A number of an mp4's tables, or of another file's head, becomes another."""
    at, number = rng.randrange(min(512, len(data))), rng.choice(NUMBERS).to_bytes(4, "big")
    number = number[:: rng.choice([1, 1, -1])]
    if boxes := [found.start() for found in re.finditer(TABLES, data)]:
        box = rng.choice(boxes)
        length = int.from_bytes(data[max(0, box - 4) : box], "big")
        at = box + 4 * rng.randrange(1, max(3, min(length, 4096) // 4 - 1))
    return data[:at] + number + data[at + 4 :]


MUTATIONS: dict[str, Mutation] = {
    "flipped": replaced(lambda part, rng: bytes([part[0] ^ rng.choice(MASKS)]) + part[1:]),
    "flipped in the middle": flipped_in_the_middle,
    "zeros": replaced(lambda part, rng: bytes(len(part))),
    "noise": replaced(lambda part, rng: rng.randbytes(len(part))),
    "deleted": replaced(lambda part, rng: b""),
    "inserted": replaced(lambda part, rng: rng.randbytes(len(part)) + part),
    "doubled": replaced(lambda part, rng: part + part),
    "swapped": replaced(lambda part, rng: part[(half := rng.randrange(len(part))) :] + part[:half]),
    "cut off": lambda data, rng, other: data[: rng.randrange(1, max(2, len(data)))],
    "tampered": tampered,
    "joined": lambda data, rng, other: data + other[: rng.randrange(2 * len(other))],
}


def damaged(kind: str, number: int, seed: int, whole: Path) -> tuple[bytes, str]:
    """A file that depends on these only, and what was done; to a quarter of them twice."""
    rng, words = random.Random(f"{seed} {kind} {number}"), []
    data, other = (whole / kind).read_bytes(), (whole / f"second_{kind}").read_bytes()
    for name in rng.choices(list(MUTATIONS), k=rng.choice([1, 1, 1, 2])):
        before, data = data, MUTATIONS[name](data, rng, other)
        words.append(f"{name} at {[*map(int.__ne__, before, data), True].index(True)}")
    return data, " + ".join(words)


@dataclass(frozen=True, eq=False)
class Reading:
    """What came of one call of `read_video`: a video, or nothing; whether the caller was told so
    by an error or a VideoWarning; the error in words; the outcome if this alone is a fault."""

    call: str
    sampling: Sampling
    video: Video | None
    told: bool
    words: str = "frames"
    fault: str | None = None


def read(source: Path | bytes, name: str, sampling: Sampling) -> Reading:
    call = f"fps={sampling.fps} start={sampling.start}" + " of bytes" * isinstance(source, bytes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            video = read_video(cast(Any, source), fps=sampling.fps, start=sampling.start)
        except Exception as error:
            # The innermost place in this library: NumPy and PyAV raise everywhere alike.
            places = traceback.extract_tb(error.__traceback__)
            at = ([one for one in places if "bvllm_" in one.filename] or places)[-1]
            words = f"{error!r}"[:200] + f" ({Path(at.filename).name}:{at.lineno})"
            return Reading(call, sampling, None, True, words, fault_of(error, name, sampling))
    alien = [f"{one.message!r}"[:200] for one in caught if one.category is not VideoWarning]
    told, words = len(caught) > len(alien), ", ".join(alien) or "frames"
    return Reading(call, sampling, video, told, words, "foreign" if alien else None)


def fault_of(error: Exception, name: str, sampling: Sampling) -> str | None:
    """What is wrong with an exception; None for one that is as it should be."""
    if isinstance(error, VideoError):
        return None if name in str(error) else "nameless"
    if isinstance(error, MemoryError):
        return "memory"
    # The video may well be over by then; whether it is, the reading of all frames tells.
    over = type(error) is ValueError and str(error).startswith("start: got")
    return None if over and sampling.start else "foreign"


def difference(full: Reading, other: Reading) -> str | None:
    """How a reading is other than what it should have taken of the reading of all frames."""
    chosen = np.arange(0)
    if full.video is not None:
        chosen = other.sampling.pick(full.video.seconds, full.video.duration)
    if full.video is None or other.video is None or not len(chosen):
        same = other.video is None and not len(chosen)
        return None if same else f"{other.call}: {other.words}; {full.call}: {full.words}"
    times, frames = full.video.seconds[chosen], full.video.frames[chosen]
    got, got_frames = other.video.seconds, other.video.frames
    if frames.shape != got_frames.shape:
        return f"{other.call}: {got_frames.shape}, wanted {frames.shape}"
    if (apart := np.abs(times - got)).any():
        return f"{other.call}: times up to {apart.max():.2g} s apart, at {seconds(got[apart > 0])}"
    odd = (frames != got_frames).any((1, 2, 3))
    return f"{other.call}: other pictures at {seconds(got[odd])}" if odd.any() else None


def seconds(times: npt.NDArray[np.float64]) -> str:
    return f"{' '.join(f'{one:.3f}' for one in times[:6])} s ({len(times)})"


def judged(path: Path) -> tuple[str, str]:
    """The outcome of a file, and in words what is wrong."""
    samplings = [Sampling(), Sampling(), Sampling(fps=1), Sampling(fps=3), Sampling(start=2)]
    readings = [read(path, path.name, sampling) for sampling in samplings]
    readings.append(read(path.read_bytes(), "bytes", Sampling()))
    full, *others = readings
    faults = [(one.fault, one.words) for one in readings if one.fault]
    for one in others:
        if not one.fault and not full.fault and (words := difference(full, one)):
            # To be told of what was not done the other time is to be told nothing.
            told = "warned" if full.told and one.told else "silent"
            faults.append((f"difference, {told}", words))
    if faults:
        worst = min((fault for fault, _ in faults), key=FAULTS.index)
        return worst, "; ".join(dict.fromkeys(words for _, words in faults))
    if full.video is None:
        return "refused", full.words
    return "warned" if any(one.told for one in readings if one.video) else "frames", ""


class Trial:
    """A damaged file, and the process that reads it."""

    def __init__(self, name: str, seed: int, whole: Path) -> None:
        kind, number = name.split(":")
        data, self.mutation = damaged(kind, int(number), seed, whole)
        self.name, self.path = name, whole / f"{int(number):05d}_{kind}"
        self.path.write_bytes(data)
        self.outcome = self.words = self.noise = ""
        self._stderr, self._deadline = tempfile.TemporaryFile(), time.monotonic() + WALL
        self._answer, answer = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self._judge, args=(answer,))
        self.process.start()
        answer.close()

    def __str__(self) -> str:
        return f"{self.name} [{self.mutation}] {self.outcome}: {self.words}"

    def _judge(self, answer: connection.Connection) -> None:
        """What the process does. Whatever is written to stderr, by whatever library, is kept."""
        os.dup2(self._stderr.fileno(), 2)
        faulthandler.enable(2)
        faulthandler.dump_traceback_later(WALL * 0.9, file=2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (WALL, WALL + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer.send(judged(self.path))

    def is_over(self) -> bool:
        """Whether it has ended, or has to be; then what became of it is known."""
        code = self.process.exitcode
        if code is None and time.monotonic() < self._deadline:
            return False
        self.process.kill()
        self.process.join()
        with self._answer, self._stderr:
            self._stderr.seek(0)
            self.noise = self._stderr.read().decode(errors="replace")
            if code == 0:
                self.outcome, words = self._answer.recv()
                self.words = words.replace(f"{self.path.parent}/", "")
            else:
                self.outcome = "hang" if code in (None, -signal.SIGXCPU) else "crash"
                at = re.findall(r'bvllm_adapters/(\S+)", line (\d+)', self.noise)[:1]
                self.words = f"exit code {code}, {at or self.noise[-300:]}"
        return True


def tried(trials: Iterator[Trial], workers: int) -> Iterator[Trial]:
    """So many at a time, as they end. By one thread: what is forked beside others may hang."""
    running: list[Trial] = []
    while running := [*running, *itertools.islice(trials, workers - len(running))]:
        connection.wait([one.process.sentinel for one in running], timeout=1)
        over = [one for one in running if one.is_over()]
        running = [one for one in running if one not in over]
        yield from over


def table(trials: Sequence[Trial]) -> str:
    """How many files of each kind had each outcome, and for how many stderr was written to."""
    columns = ["frames", "warned", "refused", *FAULTS, "noise"]
    lines = [f"{'':16}" + "".join(f"  {column}" for column in columns)]
    for kind in [*KINDS, "all"]:
        those = [one for one in trials if kind in ("all", one.name.partition(":")[0])]
        counts = Counter(found for one in those for found in (one.outcome, one.noise and "noise"))
        cells = (f"{counts[column]:{len(column) + 2}}" for column in columns)
        lines += [f"{kind:16}" + "".join(cells)] if those else []
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    for name, default in {"files": 2250, "seed": 0, "workers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--only", help="KIND:NUMBER")
    parser.add_argument("--keep", type=Path, help="folder for the files that are faults")
    args = parser.parse_args(arguments)
    kinds = [args.only.partition(":")[0]] if args.only else args.kinds.split(",")
    names = [f"{kinds[i % len(kinds)]}:{i // len(kinds)}" for i in range(args.files)]
    names = [args.only] if args.only else names
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    os.environ["SVT_LOG"] = "1"  # errors only
    Image.init()  # else each process would import what PIL knows of formats
    ended = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder)
        writer = FORK.Process(target=write_seeds, args=(whole, kinds))
        writer.start()
        writer.join()
        for one in tried((Trial(name, args.seed, whole) for name in names), args.workers):
            ended.append(one)
            if args.keep and one.outcome in FAULTS:
                (args.keep / one.path.name).write_bytes(one.path.read_bytes())
            one.path.unlink()
    faults = sorted(str(one) for one in ended if one.outcome in FAULTS)
    print(table(ended), *(ended if args.only else faults), sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
