"""The `bvllm` command: thin, each sub-command one call into the library."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

DEMO_NOTE = (
    "This is the demo's own small model. It was trained on the needle task alone and knows no\n"
    "other words; `bvllm evaluate needle` measures how well it does. --model takes another."
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

    demo = command(
        "demo", _demo, "answer a question about a sample video with a small trained model"
    )
    _asking(demo)

    ask = command("ask", _ask, "answer questions about a video")
    ask.add_argument("video", help="video file, image file or folder of frames")
    ask.add_argument("questions", nargs="+", metavar="QUESTION", help="the video is read once")
    _model(ask)
    _asking(ask)

    hosts = command("hosts", _hosts, "list the model classes that installed hosts serve")
    hosts.add_argument("--check", action="store_true", help="import each; exit 1 if one fails")

    train = command("train", _train, "train a BalancedTokenizer, and its host's language model")
    train.add_argument(
        "config", help="YAML file; examples/training has one for each host and stage"
    )
    train.add_argument("--dry-run", action="store_true", help="check files, show samples, stop")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")

    evaluate = command("evaluate", _evaluate, "measure accuracy on generated videos")
    evaluate.add_argument("task", choices=["needle"], help="needle: digits in photographs")
    _model(evaluate)
    evaluate.add_argument("--seed", type=int, default=0, help="of the videos (0)")
    evaluate.add_argument("--videos", type=int, default=60, help="of each length (60)")
    evaluate.add_argument("--needles", type=int, default=3, help="in each video, 2 to 10 (3)")
    evaluate.add_argument(
        "--frames",
        type=_counts,
        default=[32, 64, 128, 256, 512],
        help="lengths of the videos at 1 fps (32,64,128,256,512)",
    )
    evaluate.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    evaluate.add_argument("--json", type=Path, help="write the rows to this file")

    bench = command("bench", _bench, "what each stage costs, with a budget and without")
    bench.add_argument("video", nargs="?", help="read at 1 fps; without it, the demo's")
    _model(bench).add_argument(
        "--host", metavar="CLASS", help="a host's model class in its published size, random weights"
    )
    bench.add_argument(
        "--frames", type=_counts, help="lengths, as 60,240,480,720,3600 (all of the video)"
    )
    bench.add_argument("--repeats", type=int, default=5, help="of which the median is told (5)")
    bench.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    bench.add_argument("--new-tokens", type=int, default=16, help="length of each answer (16)")
    bench.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="of the weights")
    bench.add_argument("--device", help="as torch names it (cuda if there is one)")
    bench.add_argument("--threads", type=int, help="of the CPU that torch uses")
    bench.add_argument("--json", type=Path, help="write the rows to this file")
    bench.add_argument("--figure", type=Path, help="draw the growth into this SVG file")

    plan = command("plan", _plan, "how many visual tokens a video gives at most")
    plan.add_argument("frames", type=int, help="frames that are read, at 1 fps: its seconds")
    plan.add_argument("--num-frames", type=int, default=32, help="frames chosen at most (32)")
    plan.add_argument("--tokens-per-frame", type=int, default=32, help="tokens of each (32)")
    plan.add_argument("--max-tokens", type=int, help="the budget; none: no limit")
    return parser


def _counts(text: str) -> list[int]:
    """ "32,64" -> [32, 64]"""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted counts as 32,64") from None


def _model(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Which one to ask; what may stand in place of --model is for the caller to add."""
    parser.add_argument("--adapter", help="folder or hub id of an adapter for the model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="folder or hub id; without it, the demo's model")
    return which


def _asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    parser.add_argument(
        "--skip-similar",
        type=float,
        metavar="LEVELS",
        help="of 255: frames that differ less from the last one share its features (off)",
    )
    parser.add_argument("--fps", type=float, default=1.0, help="frames read per second (1)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="length of the answer (32)")


def _demo(options: argparse.Namespace) -> int:
    from bvllm_adapters.evaluation.needle import DEMO_VIDEO, demo_haystack

    haystack = demo_haystack()
    question = haystack.questions[0]
    options.video, options.questions = DEMO_VIDEO, [question.text]
    options.model = options.adapter = None
    print(f"video     {DEMO_VIDEO.name}: {len(haystack.needles)} digits, each for a second or two,")
    print(f"          in {haystack.num_frames} s of photographs that the model has not seen")
    told = _ask(options)
    (asked,) = (haystack.needles[i] for i in question.needles)
    print(
        f"\nThe right answer is {question.answer}: a {asked.color} {asked.digit} shows "
        f"{asked.place} from second {asked.start} to {asked.start + asked.length}."
    )
    print("Ask it more, of any video of this kind:")
    for other in haystack.questions[1:]:
        print(f'  bvllm ask examples/{DEMO_VIDEO.name} "{other.text}"')
    return told


def _ask(options: argparse.Namespace) -> int:
    # torch and transformers are imported when they are needed: `bvllm --help` answers at once.
    from tqdm import tqdm

    from bvllm_adapters.cli.asked_model import asked_model
    from bvllm_adapters.conversation import open_video
    from bvllm_adapters.ledger import ledger
    from bvllm_adapters.seeing.encoding import Encoding

    model, processor = asked_model(options.model, options.adapter)
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
            question, max_tokens=options.max_tokens, max_new_tokens=options.max_new_tokens
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


def _hosts(options: argparse.Namespace) -> int:
    from bvllm_adapters.hosts.find import find_host, list_hosts
    from bvllm_adapters.hosts.host import HostError

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


def _train(options: argparse.Namespace) -> int:
    from bvllm_adapters.training.config import TrainingConfig

    config = TrainingConfig.load(options.config)
    if options.dry_run:
        from bvllm_adapters.training.dry_run import dry_run

        for line in dry_run(config):
            print(line)
        return 0
    from bvllm_adapters.training.run import train

    train(config, resume=options.resume)
    print(f"adapter   {config.output}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bvllm_adapters.cli.asked_model import asked_model
    from bvllm_adapters.evaluation.needle_accuracy import evaluate, table
    from bvllm_adapters.evaluation.shipped import with_baselines

    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"--json: got {options.json}, wanted a file in a folder that is there")
    model, processor = asked_model(options.model, options.adapter)
    # What an adapter's own scout sees, other methods may not choose by.
    folder = Path(getattr(model, "name_or_path", None) or ".")
    models = with_baselines(model, folder if options.adapter is None else None)
    with tqdm(total=len(options.frames) * options.videos, unit="video", disable=None) as bar:
        rows = evaluate(
            models,
            processor,
            frames=options.frames,
            needles=options.needles,
            videos=options.videos,
            seed=options.seed,
            max_tokens=options.max_tokens,
            progress=bar.update,
        )
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=2) + "\n")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from bvllm_adapters.cli.bench import run

    return run(options)


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
