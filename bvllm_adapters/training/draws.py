"""The frame selector learns from answers alone: choices are drawn, and those under which the answer
is likelier than under others become likelier (a policy gradient).

The gradient of the answers' loss through soft choices says how to read a mixture of frames better,
which need not be where a frame is that answers. A draw is what evaluation will read: whole frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bvllm_adapters.context import noise_from
from bvllm_adapters.features import Selection, in_float32
from bvllm_adapters.frame_selector import FrameSelector, gumbel_noise

EVENNESS = 0.01
"""Weight of the entropy of choices beside a likelihood from 0 to 1, so that none is ruled out
early."""


@contextmanager
def drawing(selector: FrameSelector) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside the block each query of a selector draws one whole frame, by its scores.

    Each call adds what is needed to learn by it, with gradients whatever is around it: the
    log-probability of what was drawn, all K queries together, and their mean entropy in nats.
    """
    drawn: list[tuple[Tensor, Tensor]] = []

    def draw(
        cls: Tensor,
        text_ids: Tensor,
        *,
        seconds: Tensor | None = None,
        generator: torch.Generator | None = None,
        max_frames: int | None = None,
    ) -> Selection:
        with torch.enable_grad(), in_float32(cls):
            scores = selector.scores(cls, text_ids, seconds=seconds)
            log_chosen = scores.log_softmax(dim=1)
            frame = (scores.detach() + gumbel_noise(scores, generator)).argmax(dim=1)
            log_drawn = log_chosen.gather(1, frame[:, None]).sum()
            entropy = -(log_chosen.exp() * log_chosen).sum(dim=1).mean()
        drawn.append((log_drawn, entropy))
        chosen = Selection.whole(frame, scores.shape[1])
        chosen.query_scores = scores.detach()
        return chosen

    selector.forward = draw  # type: ignore[method-assign]
    try:
        yield drawn
    finally:
        del selector.forward  # the class's own again


def loss_of_draws(
    selector: FrameSelector, answer_loss: Callable[[], Tensor], seeds: Sequence[int], draws: int
) -> tuple[Tensor, float] | None:
    """What a selector learns of one row, and how likely its answer is.

    Args:
        answer_loss: the mean loss of the row's answer tokens, with whatever frames are drawn.
        seeds: of the noise of each of the row's visual inputs. draws: how many, 2 at least.

    Returns:
        A loss whose gradient is that of minus the likelihood, an answer token's (the geometric
        mean, from 0 to 1); and its mean over the draws. None: the row has nothing to choose from.
    """
    likelihood, log_drawn, entropy = [], [], []
    for number in range(draws):
        with noise_from(_seeds(seeds, number)), drawing(selector) as drawn, torch.no_grad():
            loss = answer_loss()
        if not drawn:
            return None
        likelihood.append((-loss.float()).exp())
        log_drawn.append(torch.stack([log for log, _ in drawn]).sum())
        entropy.append(torch.stack([each for _, each in drawn]).mean())
    reward = torch.stack(likelihood)
    # The mean of the other draws is a baseline that does not depend on a draw itself.
    better = (reward - reward.mean()) * draws / (draws - 1)
    learned = -(better.to(log_drawn[0].device) * torch.stack(log_drawn)).mean()
    return learned - EVENNESS * torch.stack(entropy).mean(), float(reward.mean())


def _seeds(seeds: Sequence[int], number: int) -> list[int]:
    """Other ones for each draw."""
    return [
        int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
        for seed in seeds
    ]
