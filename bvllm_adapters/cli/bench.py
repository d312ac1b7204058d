"""`bvllm bench`: what each stage costs, with a budget and without."""

from __future__ import annotations

import argparse
from pathlib import Path

from bvllm_adapters.cli.options import add_model, add_placement, counts

TEXT = "what each stage costs, with a budget and without"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", nargs="?", help="read at 1 fps; without it, the demo's")
    add_model(parser).add_argument(
        "--host", metavar="CLASS", help="a host's model class in its published size, random weights"
    )
    parser.add_argument(
        "--frames", type=counts, help="lengths, as 60,240,480,720,3600 (all of the video)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is told (5)")
    parser.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    parser.add_argument("--new-tokens", type=int, default=16, help="length of each answer (16)")
    add_placement(parser)
    parser.add_argument("--threads", type=int, help="of the CPU that torch uses")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--figure", type=Path, help="draw the growth into this SVG file")


def run(options: argparse.Namespace) -> int:
    from bvllm_adapters.cli.bench_report import report

    report(options)
    return 0
