"""What certification says: a line for each check, for people and for machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["passed", "failed", "not applicable"]


class NotApplicable(Exception):
    """A check has nothing to look at on this host; its text says why."""


@dataclass(frozen=True)
class Check:
    """One check of a host.

    Args:
        name: what is done. line: of the contract, as "1" or "3, 4"; empty: of no one line.
        rule: what must hold, in a few words.
        run: called with a `Subject`; gives what was looked at, raises NotApplicable, or
            AssertionError with what came and what was wanted.
    """

    name: str
    line: str
    rule: str
    run: Callable[[Any], str]

    def outcome(self, subject: Any) -> Outcome:
        """What comes of it; whatever a host raises is a failure."""
        try:
            return self._said("passed", self.run(subject))
        except NotApplicable as reason:
            return self._said("not applicable", str(reason))
        except AssertionError as error:
            return self._said("failed", str(error) or "an assertion without a message")
        except Exception as error:  # of somebody else's code
            return self._said("failed", f"raised {type(error).__name__}: {error}")

    def _said(self, state: State, detail: str) -> Outcome:
        return Outcome(self.name, self.line, self.rule, state, " ".join(detail.split()))


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Args:
        name, line, rule: of the `Check`.
        detail: what was looked at; what came and what was wanted; or why there was nothing.
    """

    name: str
    line: str
    rule: str
    state: State
    detail: str

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line else ""
        return f"{self.state:<15}{self.name:<18}{line:<11}{self.rule}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """What came of all checks of one host.

    Args:
        model: class name. host: what serves it, and who published that.
    """

    model: str
    host: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.state == "failed")

    @property
    def passed(self) -> bool:
        """Whether no check failed, and any passed."""
        return not self.failures and any(outcome.state == "passed" for outcome in self.outcomes)

    def __getitem__(self, name: str) -> Outcome:
        """The outcome of the check of this name."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        known = [outcome.name for outcome in self.outcomes]
        raise KeyError(f"{name!r}: got no such check, wanted one of {known}")

    def raise_for_failures(self) -> None:
        """AssertionError that says what failed, for tests."""
        if not self.passed:
            told = "\n".join(map(str, self.failures)) or "no check could be run"
            raise AssertionError(f"{self.model}: {len(self.failures)} checks failed\n{told}")

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts and lists, ready for JSON."""
        return {
            "model": self.model,
            "host": self.host,
            "passed": self.passed,
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    @property
    def summary(self) -> str:
        """One line."""
        states = [outcome.state for outcome in self.outcomes]
        counts = [f"{states.count(s)} {s}" for s in ("passed", "failed", "not applicable")]
        return f"{self.model} by {self.host}: {', '.join(counts)}"

    def __str__(self) -> str:
        return "\n".join([*map(str, self.outcomes), self.summary])
