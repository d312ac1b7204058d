"""A command's video, opened by the model that it asks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from bvllm_adapters.cli.options import add_asking, add_model, add_untrained
from bvllm_adapters.cli.selecting import add_selector

if TYPE_CHECKING:
    from bvllm_adapters.conversation import Answer


def add_asked(parser: argparse.ArgumentParser) -> None:
    """A video, questions about it, and who answers them how."""
    parser.add_argument("video", help="video file, image file or folder of frames")
    parser.add_argument("questions", nargs="+", metavar="QUESTION", help="the video is read once")
    add_model(parser)
    add_untrained(parser)
    add_selector(parser)
    parser.add_argument("--query", help="what the scout reads in place of QUESTION, as it is")
    add_asking(parser)


def answers(options: argparse.Namespace, *, look: bool = False) -> Iterator[Answer]:
    """To one question after the other; what it took to open the video is told with the first.

    Args:
        look: see `bvllm_adapters.ask`.
    """
    # torch and transformers are imported when they are needed: `bvllm --help` answers at once.
    from tqdm import tqdm

    from bvllm_adapters.checks import check_count
    from bvllm_adapters.cli.asked_model import model_of
    from bvllm_adapters.conversation import open_video
    from bvllm_adapters.hosts.base import tokenizer_of
    from bvllm_adapters.ledger import ledger, peak_memory
    from bvllm_adapters.seeing.encoding import Encoding
    from bvllm_adapters.selectors.choosing import check_query

    for name in ("max_tokens", "max_new_tokens"):
        if getattr(options, name) is not None:  # before anything is loaded or read
            check_count(name, getattr(options, name))
    model, processor = model_of(options)
    check_query(tokenizer_of(model).frame_selector, options.query)
    encoding = Encoding(skip_similar=options.skip_similar)
    progress_bar = tqdm(desc="decoding", unit="frame", leave=False, disable=None)
    noting = peak_memory() if look else nullcontext()
    with progress_bar as bar, ledger() as opening, noting as peaks:

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
    for i, question in enumerate(options.questions):
        answer = video.ask(
            question,
            max_tokens=options.max_tokens,
            query=options.query,
            max_new_tokens=options.max_new_tokens,
            look=look,
        )
        if i:
            yield answer
            continue
        trace = answer.trace
        names = (*opening, *trace.seconds)
        seconds = {n: opening.get(n, 0.0) + trace.seconds.get(n, 0.0) for n in names}
        if look:
            own = trace.bytes or {}
            most = {n: max((peaks or {}).get(n, 0), own.get(n, 0)) for n in (*(peaks or {}), *own)}
            trace = replace(trace, bytes=most)
        yield replace(answer, trace=replace(trace, seconds=seconds))
