"""`bvllm COMMAND`: finds the command's module, and tells a problem in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from bvllm_adapters.cli import ask, bench, demo, evaluate, hosts, plan, train

COMMANDS = {
    "demo": demo,
    "ask": ask,
    "hosts": hosts,
    "train": train,
    "evaluate": evaluate,
    "bench": bench,
    "plan": plan,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 if it went well, 1 for a problem that is told in one line."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, TypeError, OSError) as error:
        print(f"bvllm: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bvllm", description="A visual-token budget for video LLMs."
    )
    parser.add_argument(
        "--version", action="version", version=f"bvllm_adapters {version('bvllm-adapters')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.TEXT, description=module.TEXT)
        module.arguments(sub)
        sub.set_defaults(run=module.run)
    return parser
