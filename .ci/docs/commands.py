"""docs/reference/commands.md, from the commands' own descriptions.

python .ci/docs/commands.py --write         # tests/test_docs.py says when it is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bvllm_adapters.cli.main import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
HEAD = """\
# Commands

`bvllm COMMAND --help` says the same in a shell. What is in brackets is used where nothing is given.
A problem is told in one line and ends with 1, a wrong command line with 2, Ctrl-C with 130;
`BVLLM_DEBUG=1` shows where a problem arose.
"""


def page() -> str:
    return "\n".join([HEAD, *(section(name) for name in COMMANDS)])


def section(name: str) -> str:
    """Of one command: what it is for, how it is called, its arguments by group."""
    module = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"bvllm {name}", add_help=False)
    module.arguments(parser)
    lines = [f"## bvllm {name}", "", sentence(module.TEXT), "", "```", usage(parser), "```", ""]
    for group in parser._action_groups:
        actions = group._group_actions
        if not actions:
            continue
        if group.title not in ("positional arguments", "options", "optional arguments"):
            lines += [f"{sentence(group.title or '')}", ""]
        lines += [f"- `{called(action)}`: {told(action)}" for action in actions] + [""]
    return "\n".join(lines)


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def usage(parser: argparse.ArgumentParser) -> str:
    """Without options, of which there are lists below: how argparse writes them differs from one
    Python to another."""
    places = [value(action) for action in parser._actions if not action.option_strings]
    return " ".join([parser.prog, *places, "[OPTIONS]"])


def value(action: argparse.Action) -> str:
    """What an argument is given, as it is shown."""
    if action.nargs == 0:
        return ""
    name = action.metavar or (action.dest if not action.option_strings else action.dest.upper())
    if action.choices is not None:
        name = "|".join(map(str, action.choices))
    many = {"+": f"{name} [{name} ...]", "*": f"[{name} ...]", "?": f"[{name}]"}
    return many.get(str(action.nargs), str(name))


def called(action: argparse.Action) -> str:
    return " ".join([", ".join(action.option_strings), value(action)]).strip()


def told(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%").replace("<", "&lt;")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        print(page(), end="")
    else:
        PAGE.write_text(page(), encoding="utf-8")
