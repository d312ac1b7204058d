"""`bvllm train`: one stage of training, from a YAML file."""

from __future__ import annotations

import argparse

TEXT = "train a BalancedTokenizer, and its host's language model"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", help="YAML file; examples/training has one for each host and stage"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all that is needed, show samples, stop"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")


def run(options: argparse.Namespace) -> int:
    from bvllm_adapters.training.config import TrainingConfig

    config = TrainingConfig.load(options.config)
    if options.dry_run:
        from bvllm_adapters.training.dry_run import dry_run

        for line in dry_run(config, resume=options.resume):
            print(line)
        return 0
    from bvllm_adapters.training.run import train

    train(config, resume=options.resume)
    print(f"adapter   {config.output}")
    return 0
