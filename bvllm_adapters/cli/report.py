"""`bvllm report`: why a model answers as it does, as one file to look at."""

from __future__ import annotations

import argparse

from bvllm_adapters.cli.asked_video import add_asked, answers

TEXT = "show which frames and tokens questions about a video are answered from"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_asked(parser)
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        required=True,
        help="a page (.html), a picture (.png) or data (.json); over what it held before",
    )


def run(options: argparse.Namespace) -> int:
    from bvllm_adapters.trace import check_file, save

    check_file(options.out)  # before anything is read
    traces = []
    for question, answer in zip(options.questions, answers(options, look=True), strict=True):
        print(f"question  {question}")
        print(f"answer    {answer.text}")
        traces.append(answer.trace)
    save(traces, options.out)
    print(f"report    {options.out}")
    return 0
