"""Property tests for visual-token budgets: of this library, and of your own host.

Needs hypothesis, not pytest. `strategies` makes inputs, `contract` holds the rules; each rule is a
function that raises AssertionError where it is broken. It may import the BalancedTokenizer and what
is below it.
"""

from bvllm_adapters.testing.contract import (
    check_budget,
    check_deterministic,
    check_independent_of_batch,
    check_mass,
    check_no_budget_is_a_no_op,
    check_selection,
    check_time_order,
)
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
