"""`bvllm evaluate`: accuracy on generated videos."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bvllm_adapters.cli.options import add_model, add_untrained, counts

TEXT = "measure accuracy on generated videos"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", choices=["needle"], help="needle: digits in photographs")
    add_model(parser)
    add_untrained(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the videos (0)")
    parser.add_argument("--videos", type=int, default=60, help="of each length (60)")
    parser.add_argument("--needles", type=int, default=3, help="in each video, 2 to 10 (3)")
    parser.add_argument(
        "--frames",
        type=counts,
        default=[32, 64, 128, 256, 512],
        help="lengths of the videos at 1 fps (32,64,128,256,512)",
    )
    parser.add_argument("--max-tokens", type=int, help="budget of visual tokens")
    parser.add_argument("--json", type=Path, help="write the rows to this file")


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bvllm_adapters.cli.asked_model import asked_model
    from bvllm_adapters.evaluation.needle_accuracy import evaluate, table
    from bvllm_adapters.evaluation.shipped import with_baselines

    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"--json: got {options.json}, wanted a file in a folder that is there")
    model, processor = asked_model(options.model, options.adapter, untrained=options.untrained)
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
