"""`bvllm hosts`: which model classes are served, and by whom."""

from __future__ import annotations

import argparse

TEXT = "list the model classes that installed hosts serve"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="import each; exit 1 if one fails")


def run(options: argparse.Namespace) -> int:
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
