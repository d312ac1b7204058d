"""Long videos: memory that does not grow, and second questions that cost next to nothing.

    python examples/hours_of_video.py

Writes needle videos of 1 frame a second and prints the peak memory of encoding 240 and 3,600 frames
of them, and what a second question costs the demo model beside the first one. Memory is that of a
model with random weights whose tower makes 64 KiB of patches of each frame, so that keeping those
of 3,600, which is measured too, would show.
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
from transformers import CLIPVisionConfig

import bvllm_adapters as bvllm
from bvllm_adapters.evaluation.needle import make_haystack
from bvllm_adapters.ledger import ledger, peak_memory, stage
from bvllm_qwen2 import HOST
from bvllm_qwen2.tiny import tiny_model

LANGUAGE = ("prefill", "generate")  # stages of the language model; all others are the visual part


def haystack_file(folder: Path, frames: int) -> tuple[Path, list[str]]:
    haystack = make_haystack([7, frames], num_frames=frames, needles=8)
    file = folder / f"{frames}.mp4"
    haystack.write(file)
    return file, [question.text for question in haystack.questions]


def peak_of_encoding(file: Path, patches: Any) -> dict[str, int]:
    """Bytes of this process: at most while it encodes, before it; and of the features it keeps."""
    tower = CLIPVisionConfig(
        image_size=64, patch_size=4, hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=2,
    )  # fmt: skip
    model, processor = tiny_model(vision_config=tower)
    encoding = bvllm.Encoding(patches=patches)
    # All is loaded, and has run, before it is measured.
    bvllm.open_video(model, file, processor=processor, encoding=encoding, max_frames=64)
    with peak_memory() as before, stage("before"):
        pass
    with peak_memory() as peaks:
        video = bvllm.open_video(model, file, processor=processor, encoding=encoding)
    return {
        "peak": max(peaks.values()),
        "before": before["before"],
        "features": video.features.cls.nbytes,
    }


def memory(folder: Path, lengths: tuple[int, int]) -> None:
    """Each length in a process of its own."""
    files = {frames: haystack_file(folder, frames)[0] for frames in lengths}
    for patches in ("again", "keep"):
        found = []
        for frames, file in files.items():
            out = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, "--peak", str(file), patches],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found.append(one := json.loads(out.stdout))
            more, features = one["peak"] - one["before"], one["features"]
            print(
                f"patches {patches!r}, {frames:>5} frames: peak {mib(one['peak'])}, {mib(more)} "
                f"more than before; features {mib(features)}"
            )
        short, long = found
        print(
            f"  {mib(long['peak'] - short['peak'])} between them; features and 5 % of the peak: "
            f"{mib(long['features'] + 0.05 * short['peak'])}"
        )


def mib(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"


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
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak is not None:
        file, patches = given.peak
        print(json.dumps(peak_of_encoding(Path(file), patches)))
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder), (240, 3600))
        second_questions(Path(folder), given.frames, given.videos)


if __name__ == "__main__":
    main()
