"""Other ways to spend the budget of a model of train_footage.py: two that are trained as it is, and
choosers that take its selector's own scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters import BalancedTokenizer, BalancedTokenizerConfig
from bvllm_adapters.budget_merger import merge_to
from bvllm_adapters.evaluation.methods import build_method
from bvllm_adapters.features import Selection, VisualTokens
from bvllm_adapters.selectors.choosers import inverse_transform
from bvllm_adapters.selectors.coverage import Chooser, covered
from bvllm_adapters.selectors.names import named_selector
from bvllm_adapters.selectors.scores import min_max

LEARNED, UNBOUND = "learned", "no budget"
TRAINED = (LEARNED, "two tokens", "ToMe over all", UNBOUND)
BY_SCORES: dict[str, Chooser] = {
    "top-k": covered(0.0, 0.0),
    "best of bins": covered(0.0, 1.0),
    "inverse transform": inverse_transform,
    "covered MMR": covered(0.5, 0.5),
}
UNTRAINED = {"uniform": "uniform", "random": "random", "coverage, by thumbnails": "coverage"}
METHODS = (*UNTRAINED, "two tokens", "ToMe over all", *BY_SCORES, LEARNED, UNBOUND)


class MergedOverall(BalancedTokenizer):
    """The sampler's tokens of all frames, merged by similarity until the budget is met: ToMe, but
    over the whole video, whose frames are not chosen from."""

    def fit(
        self,
        frames: Sequence[Tensor],
        selections: Sequence[Selection],
        prompts: Sequence[int],
        budgets: Mapping[int, int | None],
        places: Sequence[int | None],
    ) -> list[VisualTokens]:
        """One visual input for each prompt."""
        fitted = []
        for tokens, selection, prompt in zip(frames, selections, prompts, strict=True):
            left = budgets[prompt] or tokens.shape[0] * tokens.shape[1]
            merged, size, place = (part[0] for part in merge_to(tokens.flatten(0, 1)[None], left))
            slot, within = place // tokens.shape[1], place % tokens.shape[1]
            seconds = size[:0]  # which the tokenizer fills in
            fitted.append(VisualTokens(merged, slot, size, selection, seconds, within))
        return fitted


class Unbound(BalancedTokenizer):
    """The sampler's tokens of all frames, as many as they are."""

    def fit(
        self,
        frames: Sequence[Tensor],
        selections: Sequence[Selection],
        prompts: Sequence[int],
        budgets: Mapping[int, int | None],
        places: Sequence[int | None],
    ) -> list[VisualTokens]:
        return super().fit(frames, selections, prompts, dict.fromkeys(budgets), places)


class ByScores(nn.Module):
    """Frames by a learned selector's scores, the best of its queries', and another rule.

    Args:
        selector: the learned one. choose: see `Chooser`. num_frames: K.
    """

    def __init__(self, selector: Any, choose: Callable[..., Tensor], num_frames: int) -> None:
        super().__init__()
        self.selector, self.choose, self.num_frames = selector, choose, num_frames

    def forward(
        self,
        cls: Tensor,
        text_ids: Tensor,
        *,
        seconds: Tensor,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """(T, C) frame features -> Selection of min(K, T) different frames."""
        scores = min_max(self.selector.scores(cls, text_ids).amax(dim=0)).to(cls.device)
        frames = self.choose(cls, scores, seconds, self.num_frames)
        return Selection.whole(frames, len(cls), scores=scores)


def tokenizer_of_method(method: str, config: BalancedTokenizerConfig) -> BalancedTokenizer:
    """That of one of `TRAINED`."""
    if method == LEARNED:
        return BalancedTokenizer(config)
    if method == "two tokens":
        return build_method("two_tokens", config)
    kind = Unbound if method == UNBOUND else MergedOverall
    return kind(config, frame_selector=None, temporal_merger=None)


def choose_by(method: str, tokenizer: BalancedTokenizer) -> None:
    """Have a learned tokenizer choose by another rule; the rest of it stays."""
    frames = tokenizer.config.num_frames or 1
    if method in BY_SCORES:
        learned = tokenizer.frame_selector
        tokenizer.frame_selector = ByScores(learned, BY_SCORES[method], frames).eval()
    elif method in UNTRAINED:
        tokenizer.frame_selector = named_selector(UNTRAINED[method]).eval()
