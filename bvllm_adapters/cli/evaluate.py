"""`bvllm evaluate`: accuracy on questions of one's own, or on generated videos."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bvllm_adapters.cli.options import (
    add_model,
    add_placement,
    add_skip_similar,
    add_table,
    add_untrained,
    counts,
    given,
)
from bvllm_adapters.cli.selecting import add_selector

TEXT = "measure accuracy on questions of one's own, or on generated videos"
NEEDLE = "needle"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="FILE",
        help="a table of questions: JSON lines, CSV or parquet with video, question, answer and, "
        "to choose from, options; or the word needle: digits in photographs, in generated videos",
    )
    add_model(parser)
    add_untrained(parser)
    parser.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    parser.add_argument("--seed", type=int, default=0, help="of videos, or of intervals (0)")
    parser.add_argument("--json", type=Path, help="write the rows, or FILE's summary, to this file")
    of_file(parser.add_argument_group("of a FILE"))
    of_needle(parser.add_argument_group("of needle"))


def of_file(group: argparse._ActionsContainer) -> None:
    group.add_argument("--out", type=Path, help="a row's result as soon as it is done, as JSON "
                       "lines; one that is there goes on")  # fmt: skip
    group.add_argument("--by", choices=["letter", "likelihood", "match"], help="how answers are "
                       "judged: by the letter that is said, by how likely each option is, or by "
                       "exact match (letter with options, else match)")  # fmt: skip
    group.add_argument("--circular", action="store_true", default=None, help="each question in all "
                       "turns of its options, as VNBench has it: all must be right")  # fmt: skip
    group.add_argument("--group", metavar="COLUMN", help="accuracy for each value of it, too")
    add_table(group)
    group.add_argument("--max-new-tokens", type=int, help="length of an answer at most (32)")
    group.add_argument("--instruction", metavar="TEXT", help="behind each question, in place of "
                       "how to answer")  # fmt: skip
    group.add_argument("--batch-size", type=int, help="prompts answered at a time (1)")
    add_skip_similar(group)
    add_selector(group)
    add_placement(group)


def of_needle(group: argparse._ActionsContainer) -> None:
    group.add_argument("--videos", type=int, help="of each length (60)")
    group.add_argument("--needles", type=int, help="in each video, 2 to 10 (3)")
    group.add_argument(
        "--frames", type=counts, help="lengths of the videos at 1 fps (32,64,128,256,512)"
    )


def run(options: argparse.Namespace) -> int:
    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"--json: got {options.json}, wanted a file in a folder that is there")
    others = argparse.ArgumentParser(add_help=False)
    (of_file if options.what == NEEDLE else of_needle)(others)
    for name in given(options, vars(others.parse_args([]))):
        wanted = "a FILE" if options.what == NEEDLE else NEEDLE
        raise ValueError(
            f"--{name.replace('_', '-')}: got it with {options.what}, wanted it with {wanted}"
        )
    return _needle(options) if options.what == NEEDLE else _file(options)


def _file(options: argparse.Namespace) -> int:
    from bvllm_adapters.bulk.video_row import check_some
    from bvllm_adapters.cli.asked_model import model_of
    from bvllm_adapters.cli.progress import row_progress
    from bvllm_adapters.evaluation.table_accuracy import check_group, evaluate_file
    from bvllm_adapters.evaluation.table_questions import table_question
    from bvllm_adapters.seeing.encoding import Encoding
    from bvllm_adapters.tables.results import open_to_append
    from bvllm_adapters.tables.table import read_table

    table = read_table(options.what, name="FILE")  # this and more before a model is loaded
    check_group(table, options.group)
    media = Path(options.media or table.file.parent)
    check_some(
        table.rows,
        lambda row: table_question(row, media, by=options.by, outside=bool(options.outside_media)),
        "FILE",
    )
    if options.out is not None:
        open_to_append(options.out, "--out").close()
    encoding = Encoding(skip_similar=options.skip_similar)
    model, processor = model_of(options)
    passed = (
        "by circular group out media outside_media fps max_frames max_tokens max_new_tokens "
        "instruction batch_size max_errors retry_errors seed"
    ).split()
    with row_progress() as progress:
        found = evaluate_file(
            model,
            table,
            processor=processor,
            encoding=encoding,
            progress=progress,
            **given(options, passed),
        )
    print(found)
    if options.out is not None:
        print(f"\n{len(found.rows)} rows in {options.out}")
    if options.json is not None:
        options.json.write_text(json.dumps(found.summary.to_dict(), indent=2) + "\n")
    return 0


def _needle(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bvllm_adapters.cli.asked_model import asked_model
    from bvllm_adapters.evaluation.needle_accuracy import evaluate, table
    from bvllm_adapters.evaluation.shipped import with_baselines

    own = given(options, ("frames", "videos", "needles"))
    frames, videos = own.get("frames", [32, 64, 128, 256, 512]), own.get("videos", 60)
    model, processor = asked_model(options.model, options.adapter, untrained=options.untrained)
    # What an adapter's own scout sees, other methods may not choose by.
    folder = Path(getattr(model, "name_or_path", None) or ".")
    models = with_baselines(model, folder if options.adapter is None else None)
    with tqdm(total=len(frames) * videos, unit="video", disable=None) as bar:
        rows = evaluate(
            models,
            processor,
            frames=frames,
            needles=own.get("needles", 3),
            videos=videos,
            seed=options.seed,
            max_tokens=options.max_tokens,
            progress=bar.update,
        )
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=2) + "\n")
    return 0
