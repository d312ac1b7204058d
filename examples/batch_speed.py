"""Videos an hour of `bvllm batch` on this CPU, and what of that is whose: the demo model's.

    python examples/batch_speed.py                      # two cores, a few minutes
    python examples/batch_speed.py --videos 4 --rounds 1

Videos of the needle task, with two questions each, are asked in four ways: by one process or by
two, each with its share of the videos, and reading ahead (frames and the next video, as `batch`
does by itself) or not. A process has one thread for sums, beside those that read ahead; all have
loaded their model before, and have asked once. The ways take turns, and each is compared with the
first of its own round. It takes an idle machine: where something else has a core, two processes
are no faster than one. Videos an hour are of this machine alone. Where nothing is read ahead, all
is done one after the other and has a share of the time.

Not measured: a GPU, more than one machine, longer videos, other models, slow disks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

# Before torch is imported, here and in the processes: a thread for each.
os.environ["OMP_NUM_THREADS"] = "1"

WAYS = [(1, False), (1, True), (2, False), (2, True)]  # processes, and whether they read ahead
STAGES = {
    "decode": ("decode",),
    "tower": ("preprocess", "tower"),
    "tokenizer": ("selector", "merge", "sampler", "budget", "projection"),
    "language model": ("prefill", "generate"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("batch-speed"), help="for the videos")
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=64, help="of each video")
    parser.add_argument("--fps", type=int, default=10, help="of each video; one a second is seen")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    table = written(args.work, args.videos, args.seconds, args.fps)
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(max(processes for processes, _ in WAYS)):
        here, there = context.Pipe()
        process = context.Process(target=worker, args=(there, table), daemon=True)
        process.start()
        workers.append(here)
    for each in workers:
        each.recv()  # ready

    took: dict[tuple[int, bool], list[float]] = {way: [] for way in WAYS}
    stages: dict[str, float] = {}
    for _ in range(args.rounds):
        for way in WAYS:
            seconds, told = asked(workers[: way[0]], way)
            took[way].append(seconds)
            if way == WAYS[0]:
                stages = {name: stages.get(name, 0.0) + told.get(name, 0.0) for name in told}
    for each in workers:
        each.send(None)

    print(f"{args.videos} videos of {args.seconds} s at {args.fps} fps, {os.cpu_count()} CPUs\n")
    print(
        f"| processes | read ahead | videos an hour | of the first | {' | '.join(STAGES)} | rest |"
    )
    print(f"|---|---|---|---|{'---|' * (len(STAGES) + 1)}")
    first = took[WAYS[0]]
    for way in WAYS:
        rate = args.videos * 3600 / median(took[way])
        ratios = sorted(a / b for a, b in zip(first, took[way], strict=True))
        ratio = f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        shares = [sum(stages.get(one, 0.0) for one in of) / sum(first) for of in STAGES.values()]
        own = [f"{share:.0%}" for share in [*shares, 1 - sum(shares)]]
        cells = own if way == WAYS[0] else [""] * len(own)
        print(
            f"| {way[0]} | {'yes' if way[1] else 'no'} | {rate:,.0f} | {ratio} "
            f"| {' | '.join(cells)} |"
        )


def written(work: Path, videos: int, seconds: int, fps: int) -> Path:
    """A table of questions about so many videos, which are made unless they are there."""
    from bvllm_adapters.evaluation.needle import make_haystack

    rows = []
    for seed in range(videos):
        haystack = make_haystack(seed, num_frames=seconds, needles=min(8, seconds // 2))
        file = work / f"{seed}-{seconds}-seconds-{fps}-fps.mp4"
        if not file.exists():
            new = file.with_name(f"new-{file.name}")
            haystack.write(new, size=256, fps=fps)
            new.replace(file)
        rows += [{"video": file.name, "question": one.text} for one in haystack.questions[:2]]
    table = work / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def asked(workers: list[Connection], way: tuple[int, bool]) -> tuple[float, dict[str, float]]:
    """Seconds that all of them take together, and of its stages those of the first."""
    begin = time.perf_counter()
    for i, each in enumerate(workers):
        each.send((f"{i}::{len(workers)}", way[1]))
    told = [each.recv() for each in workers]
    return time.perf_counter() - begin, told[0]


def worker(there: Connection, table: Path) -> None:
    """Asks about a share of the table whenever it is told to."""
    import torch

    import bvllm_adapters as bvllm
    from bvllm_adapters.ledger import ledger
    from bvllm_qwen2 import HOST

    torch.set_num_threads(1)
    model, processor = HOST.demo()

    ask = partial(bvllm.batch, model, table, processor=processor, max_errors=0)
    ask(rows=":1")  # what is made at the first call is no part of any way
    there.send("ready")
    while (told := there.recv()) is not None:
        share, ahead = told
        how = {} if ahead else {"workers": 0, "encoding": bvllm.Encoding(prefetch=0)}
        with ledger() as stages:
            ask(videos=share, **how)
        there.send(dict(stages))


if __name__ == "__main__":
    main()
