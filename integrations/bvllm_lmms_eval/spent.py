"""What the prompts of a run had of the budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from bvllm_adapters.trace import Trace


@dataclass
class Spent:
    """Visual tokens of each prompt that was answered.

    Args:
        opened: videos and images that were seen for it. apart: prompts answered by the model's own
            generate(), of text alone or of several images, which have no trace.
    """

    tokens: list[int] = field(default_factory=list)
    budget: int | None = None
    over: int = 0
    opened: int = 0
    apart: int = 0

    def add(self, trace: Trace) -> None:
        self.tokens.append(trace.num_tokens)
        self.budget = trace.max_tokens
        self.over += trace.max_tokens is not None and trace.num_tokens > trace.max_tokens

    def __str__(self) -> str:
        told = [f"{len(self.tokens)} prompts about {self.opened} videos or images"]
        if self.tokens:
            mean = sum(self.tokens) / len(self.tokens)
            told.append(f"visual tokens of each at most {max(self.tokens)}, {mean:.1f} on average")
            budget = "no budget" if self.budget is None else f"a budget of {self.budget}"
            told.append(f"of {budget}; over it: {self.over}")
        if self.apart:
            told.append(f"{self.apart} prompts of text or several images, by the model's own way")
        return ", ".join(told)
