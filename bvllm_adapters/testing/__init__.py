"""Property tests for visual-token budgets: of this library, and of your own host.

`strategies` makes inputs, and needs hypothesis; `contract` holds the rules, each a function that
raises AssertionError where it is broken. It may import the BalancedTokenizer and what is below it.
What holds a whole host to the contract is `bvllm_adapters.certify`.
"""

from typing import TYPE_CHECKING

from bvllm_adapters.testing.contract import (
    check_budget,
    check_deterministic,
    check_independent_of_batch,
    check_mass,
    check_no_budget_is_a_no_op,
    check_selection,
    check_time_order,
)

if TYPE_CHECKING:
    from bvllm_adapters.testing.strategies import (
        budgets,
        frame_features,
        questions,
        tokenizer_configs,
        tokenizers,
    )

__all__ = [
    "budgets",
    "check_budget",
    "check_deterministic",
    "check_independent_of_batch",
    "check_mass",
    "check_no_budget_is_a_no_op",
    "check_selection",
    "check_time_order",
    "frame_features",
    "questions",
    "tokenizer_configs",
    "tokenizers",
]


def __getattr__(name: str) -> object:
    """The strategies, once they are asked for: the rules do without hypothesis."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bvllm_adapters.testing import strategies

    return getattr(strategies, name)
