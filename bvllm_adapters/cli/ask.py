"""`bvllm ask`: questions about a video, which is read once."""

from __future__ import annotations

import argparse

from bvllm_adapters.cli.asked_video import add_asked, answers

TEXT = "answer questions about a video"
DEMO_NOTE = (
    "This is the demo's own small model. It was trained on the needle task alone and knows no\n"
    "other words; `bvllm evaluate needle` measures how well it does. --model takes another."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add_asked(parser)


def run(options: argparse.Namespace) -> int:
    for i, answer in enumerate(answers(options)):
        if i:
            print()
        print(f"question  {options.questions[i]}")
        print(f"answer    {answer.text}\n")
        print(answer.trace)
    if options.model is None:
        print(f"\n{DEMO_NOTE}")
    return 0
