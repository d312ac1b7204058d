"""What the frames that a selector chose show of what there was to be found, as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from bvllm_adapters.evaluation.intervals import Z95, share


@dataclass
class Tally:
    """Of one selector, for each video.

    Args:
        found: of each event or needle, whether a chosen frame shows it.
        gaps: the longest stretch without a chosen frame, in parts of the video.
        shots: different shots that are shown, in parts of as many as could be.
        cost: CPU seconds for all videos.
    """

    found: list[list[bool]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    shots: list[float] = field(default_factory=list)
    cost: float = 0.0

    def __str__(self) -> str:
        return "{:.2f} [{:.2f}, {:.2f}]".format(*share(self.found))

    def beside(self, other: Tally) -> str:
        """How much more was found than by another in the same videos, with its 95 % interval."""
        more = [fmean(a) - fmean(b) for a, b in zip(self.found, other.found, strict=True)]
        return f"{fmean(more):+.2f} ± {Z95 * stdev(more) / len(more) ** 0.5:.2f}"


class Tallies(defaultdict[tuple[str, str], Tally]):
    """Of (selector, kind of video), in the order in which they are first asked for."""

    def __init__(self) -> None:
        super().__init__(Tally)

    def write(self, title: str, kinds: Sequence[str]) -> None:
        """Shares found, a line a selector."""
        told = dict.fromkeys(name for name, kind in self if kind in kinds)
        write_table(
            [title, *kinds], ([name, *(str(self[name, kind]) for kind in kinds)] for name in told)
        )

    def write_beside(self, first: str, kinds: Sequence[str], names: Iterable[str]) -> None:
        """How much more than one selector others found."""
        write_table(
            [f"more than {first}", *kinds],
            (
                [name, *(self[name, kind].beside(self[first, kind]) for kind in kinds)]
                for name in names
                if name != first
            ),
        )


def write_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """As Markdown."""
    for line in (head, ["---"] * len(head), *lines):
        print(f"| {' | '.join(line)} |", flush=True)
    print()
