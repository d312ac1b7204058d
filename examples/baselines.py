"""Ways to spend one budget of visual tokens, side by side, on the needles in footage.

    python examples/baselines.py media --work footage-work

Each row is a process of its own, which asks the same questions about the same files through
`evaluate_file`, and is checked prompt by prompt: one token above the budget, and there is no table.
All have one tower, one language model and, where they take tokens of frames that are chosen, one
sampler; what is trained and not in --work yet is trained first, by train_footage.py's stages.

accuracy  share of questions whose right option is the likeliest, with its 95 % interval
recall    share of the needles asked about that a frame with a token left shows
tokens    of a prompt, on average and at most
passes    frames of a video that went through the tower, for all questions about it
seconds   of a question, its part of opening the video included, in parts of the first row's
memory    the peak of the process, model and libraries included
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from footage_methods import LEARNED, METHODS, TRAINED, UNBOUND, choose_by
from found import write_table
from natural_media import Media
from needles_in_footage import KINDS, write_haystacks
from train_footage import train

from bvllm_adapters.evaluation import evaluate_file
from bvllm_adapters.evaluation.intervals import bootstrap

BUDGET = 16
LONGEST_UNBOUND = 600  # seconds of which all tokens are read: the language model's memory


def measure(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Results of all questions in one row's own process."""
    trained = method if method in TRAINED else LEARNED
    model, processor = train(
        Media(options.media), seed=options.seed, work=options.work, method=trained,
        scale=options.scale,
    )  # fmt: skip
    choose_by(method, model.balanced_tokenizer)
    table = (options.task / "questions.jsonl").read_text()
    rows = [json.loads(line) for line in table.splitlines()]
    if method == UNBOUND:
        rows = [row for row in rows if row["length"] <= LONGEST_UNBOUND]
    file = options.task / ".asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate_file(model, file, processor=processor, by="likelihood", max_tokens=BUDGET)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": found.rows, "peak_mib": peak}


def check_budget(method: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """RuntimeError for a row that failed, or a prompt that holds more than all may hold."""
    for row in rows:
        if "error" in row:
            raise RuntimeError(f"{method}: {row['error']}")
        if method != UNBOUND and row["tokens"] > BUDGET:
            raise RuntimeError(
                f"{method}: {row['id']}: got {row['tokens']} visual tokens, wanted at most {BUDGET}"
            )


def recall(row: Mapping[str, Any]) -> float:
    """Of one question."""
    seconds = [frame["second"] for frame in row["trace"]["frames"] if frame["tokens"]]
    needles = row["columns"]["needles"]
    return fmean(any(first <= t < last + 1 for t in seconds) for first, last in needles)


def accuracy(rows: Sequence[Mapping[str, Any]]) -> str:
    videos: dict[str, list[bool]] = {}
    for row in rows:
        videos.setdefault(row["video"], []).append(bool(row["right"]))
    return "{:.2f} [{:.2f}, {:.2f}]".format(*bootstrap([*videos.values()])) if rows else "-"


def write_tables(results: Mapping[str, Mapping[str, Any]], lengths: Sequence[int]) -> None:
    def of(method: str, **columns: Any) -> list[Mapping[str, Any]]:
        return [
            row
            for row in results[method]["rows"]
            if all(row["columns"][name] == value for name, value in columns.items())
        ]

    for length in lengths:
        base = fmean(row["seconds"] for row in of(LEARNED, length=length))
        lines = []
        for method in results:
            rows = of(method, length=length)
            if rows:
                tokens = [row["tokens"] for row in rows]
                passes = fmean(row["trace"]["tower_passes"] for row in rows[len(KINDS) - 1 :: 3])
                lines.append(
                    [
                        method, accuracy(rows), f"{fmean(map(recall, rows)):.2f}",
                        f"{fmean(tokens):.1f}, {max(tokens)}", f"{passes:.0f}",
                        f"{fmean(row['seconds'] for row in rows) / base:.2f}",
                    ]
                )  # fmt: skip
        head = [f"{length} s", "accuracy", "recall", "tokens, most", "passes", "seconds"]
        write_table(head, lines)
    write_table(
        ["all lengths", *KINDS, "insert", "edit", "peak MiB"],
        (
            [
                method,
                *(accuracy(of(method, kind=kind)) for kind in KINDS),
                *(accuracy(of(method, style=style)) for style in ("insert", "edit")),
                f"{results[method]['peak_mib']:.0f}",
            ]
            for method in results
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("media", help="folder that natural_media.py filled")
    parser.add_argument("--work", type=Path, default=Path("footage-work"), help="trained stages")
    parser.add_argument("--task", type=Path, default=Path("haystacks"), help="made if not there")
    parser.add_argument("--lengths", type=int, nargs="+", default=[30, 120, 600])
    parser.add_argument("--videos", type=int, default=30, help="of each length")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--scale", type=float, default=1.0, help="of all stages' steps")
    parser.add_argument("--row", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options)))
        return
    write_haystacks(
        options.task, Media(options.media), lengths=options.lengths, videos=options.videos
    )
    results = {}
    for method in dict.fromkeys([LEARNED, *options.methods]):
        row = [sys.executable, __file__, *sys.argv[1:], "--row", method]
        *log, told = subprocess.run(
            row, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.splitlines()
        print("\n".join([*log, f"measured  {method}"]), flush=True)
        results[method] = json.loads(told)
        check_budget(method, results[method]["rows"])
    bound = [method for method in results if method != UNBOUND]
    count = sum(len(results[method]["rows"]) for method in bound)
    print(f"\n{len(bound)} rows, {count} prompts, none with more than {BUDGET} visual tokens\n")
    write_tables(results, options.lengths)


if __name__ == "__main__":
    main()
