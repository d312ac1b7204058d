"""`bvllm ask`: questions about a video, which is read once."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from bvllm_adapters.cli.options import add_asking, add_model, add_untrained
from bvllm_adapters.cli.selecting import add_selector, asked_selector

TEXT = "answer questions about a video"
DEMO_NOTE = (
    "This is the demo's own small model. It was trained on the needle task alone and knows no\n"
    "other words; `bvllm evaluate needle` measures how well it does. --model takes another."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", help="video file, image file or folder of frames")
    parser.add_argument("questions", nargs="+", metavar="QUESTION", help="the video is read once")
    add_model(parser)
    add_untrained(parser)
    add_selector(parser)
    parser.add_argument("--query", help="what the scout reads in place of QUESTION, as it is")
    add_asking(parser)


def run(options: argparse.Namespace) -> int:
    # torch and transformers are imported when they are needed: `bvllm --help` answers at once.
    from tqdm import tqdm

    from bvllm_adapters.checks import check_count
    from bvllm_adapters.cli.asked_model import asked_model
    from bvllm_adapters.cli.placement import placement
    from bvllm_adapters.conversation import open_video
    from bvllm_adapters.hosts.base import tokenizer_of
    from bvllm_adapters.ledger import ledger
    from bvllm_adapters.seeing.encoding import Encoding
    from bvllm_adapters.selectors.choosing import check_query

    for name in ("max_tokens", "max_new_tokens"):
        if getattr(options, name) is not None:  # before anything is loaded or read
            check_count(name, getattr(options, name))
    device, dtype = placement(options)
    settings: dict[str, Any] = {}
    if options.selector is not None or options.scout is not None:
        settings["selector"] = asked_selector(options, device, dtype)
    if options.max_tokens is not None:
        settings["max_tokens"] = options.max_tokens
    model, processor = asked_model(
        options.model,
        options.adapter,
        untrained=options.untrained,
        dtype=dtype,
        device=device,
        **settings,
    )
    check_query(tokenizer_of(model).frame_selector, options.query)
    encoding = Encoding(skip_similar=options.skip_similar)
    progress_bar = tqdm(desc="decoding", unit="frame", leave=False, disable=None)
    with progress_bar as bar, ledger() as opening:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        video = open_video(
            model,
            options.video,
            processor=processor,
            encoding=encoding,
            fps=options.fps,
            progress=progress,
        )
    for question in options.questions:
        answer = video.ask(
            question,
            max_tokens=options.max_tokens,
            query=options.query,
            max_new_tokens=options.max_new_tokens,
        )
        print(f"question  {question}")
        print(f"answer    {answer.text}\n")
        # What the video itself took is told with the first question.
        seconds = {**opening}
        for name, value in answer.trace.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
        print(replace(answer.trace, seconds=seconds))
        opening = {}
        if question != options.questions[-1]:
            print()
    if options.model is None:
        print(f"\n{DEMO_NOTE}")
    return 0
