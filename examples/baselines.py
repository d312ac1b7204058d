"""Ways to spend one budget of visual tokens, side by side, on the needles in footage.

    python examples/baselines.py media --work footage-work

Each row is a process of its own, which asks the same questions about the same files through
`evaluate_file`. Each prompt is checked where the language model gets it: one visual token above the
budget, or one that the trace does not tell of, and there is no table. All have one tower and the
same size of language model; what chooses frames without training has the learned row's reader. What
is trained and not in --work yet is trained first, by train_footage.py's stages; measured rows are
kept there, too.

accuracy  share of questions whose right option is the likeliest, with its 95 % interval
recall    share of the needles asked about that a frame with a token left shows
tokens    of a prompt, on average and at most
passes    frames of a video that went through the tower, for all questions about it
CPU       seconds of the process, opening videos included, in parts of the learned row's
peak MiB  of the process, model and libraries included
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from footage_methods import LEARNED, METHODS, TRAINED, UNBOUND, choose_by
from found import write_table
from natural_media import Media
from needles_in_footage import KINDS, STYLES, add_lengths, videos_of, write_haystacks
from torch import nn
from train_footage import train

from bvllm_adapters.evaluation import evaluate_file
from bvllm_adapters.evaluation.intervals import bootstrap

BUDGET, OPTIONS = 16, 4
LONGEST_UNBOUND = 600  # seconds of which all tokens are read: prompts of 2400


@dataclass(frozen=True)
class Measured:
    """What came of one row's questions about videos of one length.

    Args:
        rows: results of `evaluate_file`. cpu: seconds of the process, for all questions.
        peak_mib: of the process, up to the last question.
    """

    rows: list[dict[str, Any]]
    cpu: float
    peak_mib: float


def measure(method: str, options: argparse.Namespace) -> None:
    """What is not in --work yet, in one row's own process."""
    trained = method if method in TRAINED else LEARNED
    model, processor = train(
        Media(options.media), seed=options.seed, work=options.work, method=trained,
        scale=options.scale,
    )  # fmt: skip
    if options.only_train:
        return
    choose_by(method, model.balanced_tokenizer)
    for length in options.lengths:
        kept = kept_in(options, method, length)
        asked = questions(options.task, length)
        if asked and not kept.exists() and (method != UNBOUND or length <= LONGEST_UNBOUND):
            ask(model, processor, options.task, asked[: len(KINDS)])  # libraries load as they must
            began = time.process_time()
            with prompts_counted(model) as counts:
                rows = ask(model, processor, options.task, asked)
            cpu = time.process_time() - began
            check_budget(method, rows, counts)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(vars(Measured(rows, cpu, peak))))


def kept_in(options: argparse.Namespace, method: str, length: int) -> Path:
    count = videos_of(options)[length]
    name = f"{method}, {options.seed}, {count} of {length} s.json"
    return Path(options.work / "measured" / name)


def questions(task: Path, length: int) -> list[dict[str, Any]]:
    rows = map(json.loads, (task / "questions.jsonl").read_text().splitlines())
    return [row for row in rows if row["length"] == length]


def ask(model: Any, processor: Any, task: Path, rows: Sequence[Any]) -> list[dict[str, Any]]:
    file = task / f".{os.getpid()}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        found = evaluate_file(model, file, processor=processor, by="likelihood", max_tokens=BUDGET)
    finally:
        file.unlink()
    return found.rows


@contextmanager
def prompts_counted(model: Any) -> Iterator[list[int]]:
    """Visual tokens of each prompt as the language model gets it: what is no word's embedding."""
    counts: list[int] = []

    def count(module: nn.Module, args: Any, given: dict[str, Any]) -> None:
        embeds = given.get("inputs_embeds")
        if embeds is not None and embeds.shape[1] > 1:  # not a word of the answer
            words = model.get_input_embeddings().weight
            counts.extend(
                int((one[:, None] != words).any(dim=2).all(dim=1).sum()) for one in embeds
            )

    hook = model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        hook.remove()


def check_budget(
    method: str, rows: Sequence[Mapping[str, Any]], counts: Sequence[int] | None = None
) -> None:
    """RuntimeError for a row that failed, or a prompt that holds more than all may hold.

    Args:
        counts: of the visual tokens that the language model got, prompt by prompt, for each
            option; they must be what the rows tell.
    """
    for row in rows:
        if "error" in row:
            raise RuntimeError(f"{method}: {row['error']}")
        if method != UNBOUND and row["tokens"] > BUDGET:
            raise RuntimeError(
                f"{method}: {row['id']}: got {row['tokens']} visual tokens, wanted at most {BUDGET}"
            )
    told = [row["tokens"] for row in rows for _ in range(OPTIONS)]
    if counts is not None and list(counts) != told:
        raise RuntimeError(
            f"{method}: the language model got {sum(counts)} visual tokens in {len(counts)} "
            f"prompts, the traces tell of {sum(told)} in {len(told)}"
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


def write_tables(results: Mapping[str, Mapping[int, Measured]], lengths: Sequence[int]) -> None:
    for length in lengths:
        base = results[LEARNED][length]
        lines = []
        for method, of_length in results.items():
            if length in of_length:
                measured = of_length[length]
                rows = measured.rows
                tokens = [row["tokens"] for row in rows]
                passes = fmean(row["trace"]["tower_passes"] for row in rows[len(KINDS) - 1 :: 3])
                lines.append(
                    [
                        method, accuracy(rows), f"{fmean(map(recall, rows)):.2f}",
                        f"{fmean(tokens):.1f}, {max(tokens)}", f"{passes:.0f}",
                        f"{measured.cpu / base.cpu:.2f}", f"{measured.peak_mib:.0f}",
                    ]
                )  # fmt: skip
        videos = len({row["video"] for row in base.rows})
        cpu = base.cpu / len(base.rows)
        print(f"{videos} videos of {length} s; learned takes {cpu:.2f} s of CPU a question\n")
        head = [f"{length} s", "accuracy", "recall", "tokens, most", "passes", "CPU", "peak MiB"]
        write_table(head, lines)

    def of(method: str, *, seen: bool = False, **columns: str) -> str:
        return accuracy(
            [
                row
                for length in lengths
                if length in results[method]
                for row in results[method][length].rows
                if all(row["columns"][name] == value for name, value in columns.items())
                and (recall(row) == 1 or not seen)
            ]
        )

    write_table(
        ["all lengths", "all", *KINDS, *STYLES, "all needles seen"],
        (
            [
                method, of(method), *(of(method, kind=kind) for kind in KINDS),
                *(of(method, style=style) for style in STYLES), of(method, seen=True),
            ]
            for method in results
            if set(lengths) == set(results[method])
        ),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("media", help="folder that natural_media.py filled")
    parser.add_argument("--work", type=Path, default=Path("footage-work"), help="what is done")
    parser.add_argument("--task", type=Path, default=Path("haystacks"), help="made if not there")
    add_lengths(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--scale", type=float, default=1.0, help="of all stages' steps")
    parser.add_argument("--row", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--only-train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        measure(options.row, options)
        return
    write_haystacks(options.task, Media(options.media), videos_of(options))
    results: dict[str, dict[int, Measured]] = {}
    for method in METHODS:
        if method in (LEARNED, *options.methods):
            files = {length: kept_in(options, method, length) for length in options.lengths}
            if not all(file.exists() for file in files.values()):
                row = [sys.executable, __file__, *sys.argv[1:], "--row", method]
                if method in TRAINED:  # in a process of its own, for the sake of the peak
                    subprocess.run([*row, "--only-train"], check=True)
                subprocess.run(row, check=True)
            results[method] = {
                length: Measured(**json.loads(file.read_text()))
                for length, file in files.items()
                if file.exists()
            }
            print(f"measured  {method}", flush=True)
    bound = [
        row
        for method, of_length in results.items()
        for measured in of_length.values()
        for row in measured.rows
        if method != UNBOUND
    ]
    prompts, most = OPTIONS * len(bound), max(row["tokens"] for row in bound)
    print(f"\n{prompts} prompts under the budget of {BUDGET}; none had more than {most} tokens\n")
    write_tables(results, options.lengths)


if __name__ == "__main__":
    main()
