"""Long videos: memory that does not grow, and second questions that cost next to nothing.

    python examples/hours_of_video.py

Writes needle videos of 1 frame a second, lets the demo model see them, and prints the peak memory
of encoding 240 and 3,600 frames, and what a second question costs beside the first one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

import bvllm_adapters as bvllm
from bvllm_adapters.encoding import Encoding
from bvllm_adapters.needle import make_haystack
from bvllm_adapters.trace import ledger, peak_memory
from bvllm_qwen2 import HOST

LANGUAGE = ("prefill", "generate")  # stages of the language model; all others are the visual part


def haystack_file(folder: Path, frames: int) -> tuple[Path, list[str]]:
    haystack = make_haystack([7, frames], num_frames=frames, needles=8)
    file = folder / f"{frames}.mp4"
    haystack.write(file)
    return file, [question.text for question in haystack.questions]


def peak_of_encoding(file: Path) -> tuple[int, int]:
    """Peak bytes of this process while it encodes, and bytes of the features that it keeps."""
    model, processor = HOST.demo()
    bvllm.ask(model, file, "?", processor=processor, max_frames=64)  # all is loaded by now
    with peak_memory() as peaks:
        video = bvllm.open_video(
            model, file, processor=processor, encoding=Encoding(patches="again")
        )
    return max(peaks.values()), video.features.cls.nbytes


def memory(folder: Path, lengths: tuple[int, int]) -> None:
    """Each length in a process of its own."""
    found = []
    for frames in lengths:
        file, _ = haystack_file(folder, frames)
        out = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--peak", str(file)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak, kept = json.loads(out.stdout)
        found.append((frames, peak, kept))
        print(f"{frames:>6} frames  peak {peak / 2**20:7.1f} MiB, features {kept / 2**20:.2f} MiB")
    (_, short, _), (_, long, kept) = found
    allowed = kept + 0.05 * short
    print(f"  more by {(long - short) / 2**20:.1f} MiB; features + 5 %: {allowed / 2**20:.1f} MiB")


def second_questions(folder: Path, frames: int, videos: int) -> None:
    model: Any
    model, processor = HOST.demo()
    shares = []
    for number in range(videos):
        file, questions = haystack_file(folder, frames + number)
        with ledger() as opening:
            video = bvllm.open_video(model, file, processor=processor)
        first, *later = [visual(video.ask(question).trace.seconds) for question in questions]
        first += visual(opening)
        shares += [seconds / first for seconds in later]
    print(
        f"{frames:>6} frames  visual part of a later question: {median(shares):.1%} of the first "
        f"one's (median of {len(shares)}; {min(shares):.1%} to {max(shares):.1%})"
    )


def visual(seconds: dict[str, float]) -> float:
    return sum(value for name, value in seconds.items() if name not in LANGUAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=600, help="of the video asked about (600)")
    parser.add_argument("--videos", type=int, default=3, help="asked about (3)")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak is not None:
        print(json.dumps(peak_of_encoding(given.peak)))
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder), (240, 3600))
        second_questions(Path(folder), given.frames, given.videos)


if __name__ == "__main__":
    main()
