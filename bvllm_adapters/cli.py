"""The `bvllm` command: thin, each sub-command one call into the library."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEMO_VIDEO = Path(__file__).parent / "data" / "big_buck_bunny.mp4"
DEMO_QUESTION = "What does the rabbit do?"
DEMO_WARNING = (
    "The demo's model is small and its weights are random: the words of the answer mean nothing,\n"
    "and neither does which frames it chose. Frames, times, token counts and seconds are real."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 if it went well, 1 for a problem that is told in one line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, TypeError, OSError) as error:
        print(f"bvllm: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bvllm", description="A visual-token budget for video LLMs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "answer a question about a sample video with a small model")
    _asking(demo)

    ask = command("ask", _ask, "answer a question about a video")
    ask.add_argument("video", help="video file, image file or folder of frames")
    ask.add_argument("question")
    ask.add_argument("--model", help="folder or hub id; without it, the demo's random model")
    _asking(ask)

    hosts = command("hosts", _hosts, "list the model classes that installed hosts serve")
    hosts.add_argument("--check", action="store_true", help="import each; exit 1 if one fails")

    plan = command("plan", _plan, "how many visual tokens a video gives at most")
    plan.add_argument("frames", type=int, help="frames that are read, at 1 fps: its seconds")
    plan.add_argument("--num-frames", type=int, default=32, help="frames chosen at most (32)")
    plan.add_argument("--tokens-per-frame", type=int, default=32, help="tokens of each (32)")
    plan.add_argument("--max-tokens", type=int, help="the budget; none: no limit")
    return parser


def _asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    parser.add_argument("--fps", type=float, default=1.0, help="frames read per second (1)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="length of the answer (32)")


def _demo(options: argparse.Namespace) -> int:
    options.video, options.question, options.model = DEMO_VIDEO, DEMO_QUESTION, None
    print(f"video     {DEMO_VIDEO.name} (c) Blender Foundation, CC BY 3.0")
    return _ask(options)


def _ask(options: argparse.Namespace) -> int:
    # torch and transformers are imported when they are needed: `bvllm --help` answers at once.
    from tqdm import tqdm

    from bvllm_adapters.conversation import ask
    from bvllm_adapters.hosts import find_host, load

    if options.model is None:
        native: Any = find_host("BvllmQwen2ForConditionalGeneration")
        model, processor = native.demo()
    else:
        model, processor = load(options.model), None
    with tqdm(desc="decoding", unit="frame", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        answer = ask(
            model,
            options.video,
            options.question,
            processor=processor,
            max_tokens=options.max_tokens,
            fps=options.fps,
            progress=progress,
            max_new_tokens=options.max_new_tokens,
        )
    print(f"question  {options.question}")
    print(f"answer    {answer.text}\n")
    print(answer.trace)
    if options.model is None:
        print(f"\n{DEMO_WARNING}")
    return 0


def _hosts(options: argparse.Namespace) -> int:
    from bvllm_adapters.hosts import HostError, find_host, list_hosts

    failed = 0
    for info in list_hosts():
        state = ""
        if options.check:
            try:
                find_host(info.name)
                state = "  ok"
            except HostError as error:
                failed, state = 1, f"  {error}"
        print(f"{info.name}  {info}{state}")
    return failed


def _plan(options: argparse.Namespace) -> int:
    from bvllm_adapters.config import BalancedTokenizerConfig, plan

    config = BalancedTokenizerConfig(
        num_frames=options.num_frames,
        tokens_per_frame=options.tokens_per_frame,
        max_tokens=options.max_tokens,
    )
    most = plan(config, options.frames)
    print(f"{most} visual tokens at most for {options.frames} frames")
    return 0
