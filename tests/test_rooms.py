"""The house: imports run one way, in no circle, and the core never imports an integration."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bvllm_adapters"

# From the ground up: a module imports from its own floor or from those above it in this list.
FLOORS = [
    "data checks weights config context ledger report tables",
    "video",
    "features question qformer",
    "frame_count frame_selector temporal_merger spatial_sampler budget_merger scout trace",
    "selectors",
    "build balanced_tokenizer",
    "hosts",
    "seeing",
    "conversation",
    "bulk",
    "testing training evaluation bench engines",
    "certify",
    "cli",
]
# Wings of one floor stand apart, but for the needle task's clip, on which bench measures.
WINGS = "testing training evaluation bench engines".split()
SIDEWAYS = {("bench", "evaluation")}


def modules() -> dict[str, Path]:
    """bvllm_adapters.a.b -> its file."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path) -> set[str]:
    """What a file imports of this package and of integrations, wherever in it, for types too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= (inner & KNOWN.keys()) or {node.module}
    return {name for name in found if name.startswith("bvllm_")}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


KNOWN = modules()
IMPORTS = {name: imports(file) for name, file in KNOWN.items()}
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor.split()}


def test_every_room_has_its_floor() -> None:
    assert {room(name) for name in KNOWN} - {""} == LEVEL.keys()


@pytest.mark.parametrize("module", sorted(name for name in KNOWN if room(name)))
def test_imports_run_downwards(module: str) -> None:
    here = room(module)
    for other in IMPORTS[module] & KNOWN.keys():
        there = room(other)
        assert LEVEL[there] <= LEVEL[here], f"{module} imports {other}, which is above it"
        if here in WINGS and there in WINGS and here != there:
            assert (here, there) in SIDEWAYS, f"{module} imports {other}, which is beside it"


def test_nothing_runs_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in IMPORTS[module] & KNOWN.keys():
                visit(other, (*path, module))
            done.add(module)

    for module in KNOWN.keys() - {"bvllm_adapters"}:
        visit(module, ())


def test_the_core_imports_no_integration() -> None:
    for module, others in IMPORTS.items():
        foreign = {other for other in others if not other.startswith("bvllm_adapters")}
        assert not foreign, f"{module} imports {foreign}"


def test_the_top_floor_is_the_paper() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 18
    lengths = {name: len(file.read_text().splitlines()) for name, file in KNOWN.items()}
    assert max(lengths.values()) <= 350, max(lengths, key=lengths.__getitem__)
