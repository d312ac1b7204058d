"""`bvllm demo`: one question about the sample video, to the small trained model."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from collections.abc import Sequence

from bvllm_adapters.cli import ask
from bvllm_adapters.cli.options import add_asking

TEXT = "answer a question about a sample video with a small trained model"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_asking(parser)


def run(options: argparse.Namespace) -> int:
    from bvllm_adapters.evaluation.needle import DEMO_VIDEO, demo_haystack

    haystack = demo_haystack()
    question = haystack.questions[0]
    options.video, options.questions = DEMO_VIDEO, [question.text]
    options.model = options.adapter = options.selector = options.scout = options.query = None
    options.untrained = False
    print(f"video     {DEMO_VIDEO.name}: {len(haystack.needles)} digits, each for a second or two,")
    print(f"          in {haystack.num_frames} s of photographs that the model has not seen")
    told = ask.run(options)
    (asked,) = (haystack.needles[i] for i in question.needles)
    print(
        f"\nThe right answer is {question.answer}: a {asked.color} {asked.digit} shows "
        f"{asked.place} from second {asked.start} to {asked.start + asked.length}."
    )
    print("Ask it more, of any video of this kind:")
    for other in haystack.questions[1:]:
        print(f"  {_line(['bvllm', 'ask', str(DEMO_VIDEO), other.text])}")
    return told


def _line(words: Sequence[str]) -> str:
    """What the shell takes for these words, wherever it is."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
