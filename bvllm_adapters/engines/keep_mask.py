"""Which visual tokens to keep, for engines that drop tokens by themselves.

Such an engine makes room in a prompt before anything is encoded, and drops tokens once they are
there (vLLM's EVS: a count by the shape of a video, then a mask by its embeddings). Both halves are
here, and the mask has as many as the count said, whatever the tokens are. Tokens that are kept stay
as they are: where our own hosts merge, the earliest of those that became one stands for them.

Axes: T frames (or pairs, as the tower has it), P tokens of each, H width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bvllm_adapters.budget_merger import BudgetMerger
from bvllm_adapters.checks import check_count
from bvllm_adapters.features import Selection, check_tensor
from bvllm_adapters.selectors.choosers import evenly
from bvllm_adapters.selectors.coverage import CoverageSelector
from bvllm_adapters.selectors.split import frames_and_tokens, least_tokens


def retained_count(num_frames: int, tokens_per_frame: int, max_tokens: int) -> int:
    """How many tokens of a video are kept: the budget, or all there are if those are fewer.

    Args:
        num_frames: T. tokens_per_frame: P. max_tokens: the budget of one video.

    Raises:
        ValueError, TypeError: a count below 1, or no count.

    >>> retained_count(num_frames=64, tokens_per_frame=196, max_tokens=2048)
    2048
    """
    room = check_count("num_frames", num_frames) * check_count("tokens_per_frame", tokens_per_frame)
    return min(room, check_count("max_tokens", max_tokens))


@torch.no_grad()
def keep_mask(
    tokens: Tensor,
    max_tokens: int,
    *,
    seconds: Tensor | None = None,
    selector: nn.Module | None = None,
    question: str = "",
) -> Tensor:
    """Which tokens of a video are kept, of the frames that show what comes and goes.

    Args:
        tokens: (T, P, H) after the projector, as the language model would read them.
        max_tokens: see `retained_count`.
        seconds: (T,) times of the frames, never decreasing; None: one frame a second.
        selector: of frames, see `bvllm_adapters.selectors`; it is given the (T, H) means of their
            tokens. None: `CoverageSelector(by="tower")`.
        question: for a selector that reads one.

    Returns:
        (T, P) bool, on the device of the tokens, with `retained_count(T, P, max_tokens)` of them
        true. `mask.flatten()` is in the order in which tokens stand in a prompt.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """
    check_tensor("tokens", tokens, "T P H")
    frames, each, _ = tokens.shape
    count = retained_count(frames, each, max_tokens)
    if count == frames * each:
        return torch.ones(frames, each, dtype=torch.bool, device=tokens.device)
    selection = _chosen(tokens, count, seconds, selector, question)
    kept = BudgetMerger()(tokens[selection.frame], count, selection)
    mask = torch.zeros(frames, each, dtype=torch.bool, device=tokens.device)
    assert kept.place is not None  # our own merger says it
    mask[kept.frame, kept.place] = True
    return mask


def _chosen(
    tokens: Tensor, count: int, seconds: Tensor | None, selector: nn.Module | None, question: str
) -> Selection:
    """The frames to keep tokens of, as many as the budget is best split into, and no fewer than
    have that many tokens."""
    frames, each, _ = tokens.shape
    if frames == 1:
        return Selection.everything(1, tokens.device)
    wanted, _ = frames_and_tokens(count, frames, each, least=least_tokens(each))
    needed = -(-count // each)
    if selector is None:
        selector = CoverageSelector(by="tower")
    if seconds is None:
        seconds = torch.arange(frames, dtype=torch.float32, device=tokens.device)
    selection: Selection = selector(
        tokens.float().mean(dim=1), question, seconds=seconds,
        num_frames=max(wanted, needed),
    )  # fmt: skip
    found = selection.frame.unique()
    if len(found) == len(selection.frame) >= needed:
        return selection
    # A selector may take a frame twice, or fewer than it was told: others stand in, evenly.
    left = torch.ones(frames, dtype=torch.bool, device=tokens.device)
    left[found] = False
    others, lacking = left.nonzero()[:, 0], needed - len(found)
    more = others[evenly(len(others), lacking).to(others.device)] if lacking > 0 else others[:0]
    return Selection.whole(torch.cat([found, more]).sort().values, frames)
