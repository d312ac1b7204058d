"""Where reading a prompt ends and writing an answer begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from bvllm_adapters.trace import stage


@contextmanager
def answering() -> Iterator[list[Callable[[Tensor, Tensor], Any]]]:
    """Books what runs inside under "prefill" up to the first logits, then under "generate".

    Gives the `logits_processor` for a call of transformers' generate(); it changes no logits.
    """
    with ExitStack() as running:
        running.enter_context(stage("prefill"))
        first = iter((True,))

        def at_each_token(input_ids: Tensor, scores: Tensor) -> Tensor:
            if next(first, False):
                running.close()
                running.enter_context(stage("generate"))
            return scores

        yield [at_each_token]
