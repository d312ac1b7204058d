"""How a selector without training is asked: for as many frames as the budget has room for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bvllm_adapters.checks import takes
from bvllm_adapters.features import FrameFeatures, Selection
from bvllm_adapters.selectors.split import frames_and_tokens, least_tokens


def choose(
    selector: nn.Module,
    video: FrameFeatures,
    question: str,
    *,
    max_tokens: int | None,
    native: int,
    frames: int | None,
    tokens_per_frame: int | None,
    generator: torch.Generator | None = None,
    query: str | None = None,
) -> Selection:
    """Whole frames of one video; an image has nothing to choose from.

    Args:
        max_tokens: what the budget has for this video. native: tokens of a frame as it is.
        frames, tokens_per_frame: as the caller wants them; None: by the rule of `split`.
        query: what a scout reads in place of the question; see `check_query`.
    """
    if video.num_frames == 1:
        return Selection.single_frame(1, video.cls.device)
    wanted, _ = frames_and_tokens(
        max_tokens,
        video.num_frames,
        native,
        frames=frames,
        tokens_per_frame=tokens_per_frame,
        least=least_tokens(native),
    )
    how = {} if query is None else {"query": query}
    selection: Selection = selector(
        video.cls, question, seconds=video.seconds, num_frames=wanted, generator=generator, **how
    )
    return selection


def sees(selector: nn.Module | None) -> bool:
    """Whether a selector makes its own features, of pictures; else it is given the tower's."""
    return bool(getattr(selector, "sees", False))


def check_query(selector: nn.Module | None, query: object) -> None:
    """TypeError or ValueError for what `selector` could not read in place of a question."""
    if query is None:
        return
    if not isinstance(query, str):
        raise TypeError(f"query: got {type(query).__name__}, wanted a string")
    if selector is None or not takes(selector, "query"):
        what = (
            "no selector is here" if selector is None else f"a {type(selector).__name__} reads none"
        )
        raise ValueError(f"query: got {query!r:.80}, wanted None, as {what}")


def checked_queries(
    selector: nn.Module | None, queries: Sequence[str | None] | None, count: int
) -> list[str | None]:
    """One for each of `count` questions, each such as `selector` can read; see `check_query`."""
    if queries is None:
        return [None] * count
    if isinstance(queries, str) or len(queries) != count:
        got = repr(queries) if isinstance(queries, str) else len(queries)
        raise ValueError(f"queries: got {got}, wanted {count}, one for each question")
    for query in queries:
        check_query(selector, query)
    return list(queries)
