"""README's table of families, made of what the tests here are run for.

`python tests/integrations/transformers_hosts/table.py` prints it; a test compares the README's.
"""

from __future__ import annotations

from budgets import KEEPS_TIMES
from processors import PROCESSORS
from references import TIME_IN_TOWER
from test_transformers_families import NO_BEAMS, ONE_VIDEO
from test_transformers_splits import GRIDS, IMAGES_ALONE
from tiny import FAMILIES, INDEX

HEAD = (
    "model class",
    "all kept",
    "frames left",
    "images beside",
    "several videos",
    "batch",
    "beams",
    "`ask`, encode once",
    "stages trained",
)
FIRST = [*PROCESSORS, "qwen2_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]
SUFFIX = "ForConditionalGeneration"


def cells(name: str) -> tuple[str, ...]:
    """What holds of a family, as the tests have it."""
    frames = "as the model given those alone"
    if name in KEEPS_TIMES:
        frames = "as the model with the others masked (they keep their times)"
    if name in TIME_IN_TOWER:
        frames = "as the model with the others masked (its tower sees whole segments)"
    by_images = INDEX[name]["inputs"].keys().isdisjoint({"pixel_values_videos"})
    return (
        "bit for bit",
        frames,
        "yes" if name in GRIDS else "as frames" if by_images else "-",
        "-" if name in ONE_VIDEO else "yes",
        "yes",
        "as unmodified: none" if name in NO_BEAMS else "yes",
        "yes" if name in PROCESSORS else "-",
        "yes" if name in PROCESSORS else "-",
    )


def class_of(name: str) -> str:
    return "`" + str(INDEX[name]["class"]).removesuffix(SUFFIX) + "`"


def table() -> str:
    """Families of equal cells in one row, those with more of them first."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in [*FIRST, *(name for name in FAMILIES if name not in FIRST)]:
        rows.setdefault(cells(name), []).append(class_of(name))
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for values, names in rows.items():
        lines.append("| " + " | ".join([", ".join(dict.fromkeys(names)), *values]) + " |")
    alone = ", ".join(f"`{name}`" for name in IMAGES_ALONE)
    lines.append(f"| {alone} | bit for bit | images alone" + " | -" * 6 + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
