"""Plain values, checked: errors name the argument or field, what came, and what was wanted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """`value` if it is an int (no bool) in [least, most], else TypeError or ValueError."""
    wanted = f"an int >= {least}" if most is None else f"an int from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), wanted {wanted}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: got {value}, wanted {wanted}")
    return value


def check_number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> None:
    """A finite number, `least` or more, more than `above`, less than `below`, `most` or less."""
    bounds = {">=": least, ">": above, "<": below, "<=": most}
    wanted = " and ".join(
        f"{sign} {bound:g}" for sign, bound in bounds.items() if abs(bound) < math.inf
    )
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = ""
        if isinstance(value, str):
            hint = " (YAML takes 1e-3 for text: write 1.0e-3 or 0.001)"
        raise TypeError(f"{name}: got {value!r}, wanted a number {wanted}{hint}")
    if isinstance(value, int) and abs(value) > 10**300:
        raise ValueError(f"{name}: got an int beyond 1e300, wanted a number {wanted}")
    if not (least <= value <= most and above < value < below and math.isfinite(value)):
        raise ValueError(f"{name}: got {value}, wanted a number {wanted}")


def takes(stage: Any, name: str) -> bool:
    """Whether a stage's forward() knows an argument that a caller's own stage need not have."""
    known = inspect.signature(stage.forward).parameters
    return name in known or any(each.kind is each.VAR_KEYWORD for each in known.values())


def checked_prompts(prompts: Sequence[int] | None, count: int) -> list[int]:
    """Which prompt each of `count` inputs belongs to; each to its own, where nobody says."""
    if prompts is None:
        return list(range(count))
    if len(prompts) != count:
        raise ValueError(f"prompts: got {len(prompts)}, wanted {count} as features")
    return list(prompts)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """`value` is one of `choices`, else ValueError."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {list(choices)}")


def check_names(values: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    """No unknown name, and none that is needed missing."""
    unknown = sorted(map(str, set(values) - set(known)))
    if unknown:
        raise ValueError(f"config: got unknown names {unknown}, wanted some of {list(known)}")
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"config: got no {', '.join(missing)}, wanted {list(needed)}")


def text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: got {value!r}, wanted a folder or hub id")
    return value


def path(name: str, value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError(f"{name}: got {value!r}, wanted a path")
    return Path(value)


def several(name: str, value: object, choices: Sequence[str] | None = None) -> tuple[str, ...]:
    """A list of names, each of them one of `choices`, if there are any."""
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    wrong = [
        one
        for one in given
        if not isinstance(one, str) or (choices is not None and one not in choices)
    ]
    if wrong or isinstance(value, str):
        wanted = "a list of names" if choices is None else f"a list of some of {list(choices)}"
        raise ValueError(f"{name}: got {value!r}, wanted {wanted}")
    return tuple(map(str, given))
