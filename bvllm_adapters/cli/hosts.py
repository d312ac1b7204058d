"""`bvllm hosts`: which model classes are served, by whom, and whether they keep the contract."""

from __future__ import annotations

import argparse
import json

from bvllm_adapters.cli.options import add_placement

TEXT = "list the model classes that installed hosts serve, or hold one to the contract"


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="import each; exit 1 if one fails")
    what.add_argument(
        "--certify",
        metavar="NAME",
        help="run the contract on a model of this class, end to end; exit 1 if a check fails",
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="with --certify: a checkpoint with its processor (a tiny one that the host makes)",
    )
    parser.add_argument(
        "--host", metavar="MODULE:OBJECT", help="with --certify: instead of the published host"
    )
    parser.add_argument("--json", action="store_true", help="with --certify: the report as JSON")
    add_placement(parser)


def run(options: argparse.Namespace) -> int:
    if options.certify is not None:
        return _certify(options)
    for name in ("model", "host", "json", "device", "dtype"):
        if getattr(options, name):
            raise ValueError(f"--{name}: got it without --certify, wanted both")
    return _list(options.check)


def _list(check: bool) -> int:
    from bvllm_adapters.hosts.find import find_host, list_hosts
    from bvllm_adapters.hosts.host import HostError

    failed = 0
    for info in list_hosts():
        state = ""
        if check:
            try:
                find_host(info.name)
                state = "  ok"
            except HostError as error:
                failed, state = 1, f"  {error}"
        print(f"{info.name}  {info}{state}")
    return failed


def _certify(options: argparse.Namespace) -> int:
    import logging
    import sys

    from transformers.utils.logging import disable_progress_bar

    from bvllm_adapters.certify import Outcome, certify_class
    from bvllm_adapters.cli.placement import device_of, dtype_of

    disable_progress_bar()
    device = device_of(options.device or "cpu")
    dtype = dtype_of(options.dtype or "float32", device)

    def told(outcome: Outcome) -> None:
        print(outcome, flush=True, file=sys.stderr if options.json else sys.stdout)

    # It says of each new tokenizer that it is untrained, which is what they are for here.
    log = logging.getLogger("bvllm_adapters")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        report = certify_class(
            options.certify, options.model, host=options.host, dtype=dtype, device=device, told=told
        )
    finally:
        log.setLevel(level)
    print(json.dumps(report.to_dict(), indent=2) if options.json else report.summary)
    return 0 if report.passed else 1
