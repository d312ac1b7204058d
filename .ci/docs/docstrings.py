"""Docstrings as this project writes them -> Markdown, for the pages of the reference.

Their sections (Args, Returns, Raises, Yields) group names that share an explanation, and go on
without further indentation, which readers of docstrings do not expect.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection

SECTIONS = {"Args": "Arguments", "Returns": "Returns", "Raises": "Raises", "Yields": "Yields"}
_HEAD = re.compile(rf"({'|'.join(SECTIONS)}):\s*$")
_ITEM = re.compile(r"([*\w.]+(?:, [*\w.]+)*): (.*)")


def as_markdown(docstring: str, public: Collection[str] = ()) -> str:
    """Args:
    docstring: with no indentation of its own.
    public: names at the top of the package, which become links.
    """
    made: list[str] = []
    lines = docstring.splitlines()
    while lines:
        line = lines.pop(0)
        head = _HEAD.match(line)
        if head is None:
            made.append(line)
            continue
        block = []
        while lines and (not lines[0].strip() or lines[0].startswith(" ")):
            block.append(lines.pop(0))
        made += ["", f"**{SECTIONS[head[1]]}**", "", *_section(head[1], block), ""]
    return linked("\n".join(made).strip() + "\n", public)


def _section(kind: str, block: list[str]) -> list[str]:
    text = textwrap.dedent("\n".join(block)).strip()
    if kind in ("Returns", "Yields"):
        return [text]
    items: list[str] = []
    for line in text.splitlines():
        item = None if line.startswith(" ") else _ITEM.match(line)
        if item is not None:
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            items.append(f"- {names}: {item[2]}")
        elif items and line.strip():
            items[-1] += f"\n  {line.strip()}"
        elif line.strip():
            items.append(f"- {line}")
    return items


def linked(markdown: str, public: Collection[str]) -> str:
    """`Name` -> a link to it, where it is public; not inside of blocks of code."""

    def link(found: re.Match[str]) -> str:
        name = found[1].removesuffix("()")
        return f"[{found[0]}][bvllm_adapters.{name}]" if name in public else found[0]

    return "\n".join(
        line if line.startswith("    ") else re.sub(r"(?<!\[)`(\w+(?:\(\))?)`", link, line)
        for line in markdown.split("\n")
    )
