"""YAML that others wrote, read with errors that say which file; files of ours, written whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from bvllm_adapters.tables.text import read_text

ASIDE = ".unfinished"  # what is being written has this behind its name


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Modifications of PyYAML's safe one:
    - an alias is an error: a few of them can stand for more values than memory holds
    - a name that stands twice in a mapping is an error, where the last would win
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "got an alias, wanted values written out", mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"got {key.value!r} twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(name: str, file: str | Path) -> Any:
    """The plain values of a YAML file, of one document without aliases.

    Raises:
        ValueError: a file that cannot be read, or holds anything else.
    """
    text = read_text(name, file)
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError(f"{name}: {file}: cannot be read (it is nested too deeply)") from error
    except Exception as error:  # PyYAML lets KeyError, AttributeError and others out
        told = " ".join(str(error).split()) or repr(error)
        raise ValueError(f"{name}: {file}: cannot be read ({told})") from error


def write_whole(file: Path, text: str) -> None:
    """Write a UTF-8 file aside, then rename it: whoever reads it finds all of it or the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ASIDE)
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)
