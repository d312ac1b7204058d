"""What merging the tokens of one frame costs beside ToMe's published matching, on this CPU.

    python examples/merge_speed.py

That matching is written anew from section 3 of Bolya et al., "Token Merging: Your ViT But Faster"
(arXiv 2210.09461): tokens at even places are compared with those at odd places by cosine, each even
one points at its most similar odd one, the r strongest pairs merge into their mean; in rounds, down
to the same number of tokens. It neither counts how many a token holds, nor restores their order,
nor checks what comes in, all of which `merge_to` and BudgetMerger do.

All three run in turn, in this process and on the same tokens, so that the ratios hold whatever else
the machine does. A ratio is the median of those of each turn.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from bvllm_adapters import BudgetMerger, Selection
from bvllm_adapters.budget_merger import merge_to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=whole_numbers, default=[64, 1024, 4096])
    parser.add_argument("--widths", type=whole_numbers, default=[768, 3584])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"{os.cpu_count()} CPUs, {args.threads} threads, torch {torch.__version__}")
    print(f"{'tokens':>13}{'width':>7}{'turns':>7}{'ToMe':>12}{'merge_to':>10}{'BudgetMerger':>14}")
    for width in args.widths:
        for count in args.tokens:
            for target in (count // 4, count // 2):
                theirs, rounds, stage, turns = measured(count, target, width, args.seconds)
                print(
                    f"{count:>5} to {target:>4}{width:>7}{turns:>7}{theirs * 1e3:>9.2f} ms"
                    f"{rounds:>10.2f}{stage:>14.2f}",
                    flush=True,
                )


def whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


@torch.inference_mode()
def measured(
    count: int, target: int, width: int, seconds: float
) -> tuple[float, float, float, int]:
    """Seconds that ToMe's matching takes, what `merge_to` and BudgetMerger take of that, turns."""
    tokens = torch.randn(1, count, width, generator=torch.Generator().manual_seed(count))
    merger, frame = BudgetMerger(), Selection.everything(1)
    ways: Sequence[Callable[[], object]] = (
        lambda: tome(tokens, target),
        lambda: merge_to(tokens, target),
        lambda: merger(tokens, target, frame),
    )
    for way in ways:  # what is done once is not counted
        way()
    turns: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(turns) < 3 or time.perf_counter() < end:
        took = {}
        # Each way begins a turn as often as the others.
        for i in range(len(ways)):
            which = (len(turns) + i) % len(ways)
            begin = time.perf_counter()
            ways[which]()
            took[which] = time.perf_counter() - begin
        turns.append([took[which] for which in range(len(ways))])
    ratios = [median(turn[which] / turn[0] for turn in turns) for which in (1, 2)]
    return median(turn[0] for turn in turns), ratios[0], ratios[1], len(turns)


def tome(tokens: Tensor, target: int) -> Tensor:
    """(B, T, H) -> (B, target, H)."""
    while (count := tokens.shape[1]) > target:
        merges = min(count // 2, count - target)
        unit = tokens / tokens.norm(dim=2, keepdim=True)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=2)
        ranked = best.argsort(dim=1, descending=True)
        leaving, staying = ranked[:, :merges], ranked[:, merges:]
        even, odd = tokens[:, ::2], tokens[:, 1::2]
        into = partner.gather(1, leaving)
        odd = odd.scatter_reduce(1, along(into, tokens), rows(even, leaving), "mean")
        tokens = torch.cat([rows(even, staying), odd], dim=1)
    return tokens


def rows(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, along(places, x))


def along(places: Tensor, x: Tensor) -> Tensor:
    return places[..., None].expand(-1, -1, x.shape[2])


if __name__ == "__main__":
    main()
