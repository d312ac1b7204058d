"""The frame selector learns from answers alone: frames under which the answer is likelier than
under others become likelier to be chosen.

The gradient of the answers' loss through soft choices says how to read a mixture of frames better,
which need not be where a frame is that answers. Here whole frames are read, as in evaluation, so
many times that the likelihoods of the answer can be compared; only the selector has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bvllm_adapters.context import in_float32, noise_from
from bvllm_adapters.features import Selection
from bvllm_adapters.frame_selector import FrameSelector, gumbel_noise

EVENNESS = 0.01
"""Weight of the entropy of choices beside a likelihood from 0 to 1, so that none is ruled out
early."""

Pick = Callable[[Tensor, torch.Generator | None], tuple[Tensor, Tensor]]
"""(K, T) log-probabilities of choices, noise -> (M,) frames, and the log-probability of that."""


@contextmanager
def picking(selector: FrameSelector, pick: Pick) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside the block a selector gives whole frames that `pick` takes.

    Each call adds what is needed to learn by it, with gradients whatever is around it: the
    log-probability that `pick` says, and the mean entropy of the queries' choices in nats.
    """
    picked: list[tuple[Tensor, Tensor]] = []

    def forward(
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
            frame, log_picked = pick(log_chosen, generator)
            picked.append((log_picked, entropy(log_chosen)))
        chosen = Selection.whole(frame, scores.shape[1])
        chosen.query_scores = scores.detach()
        return chosen

    selector.forward = forward  # type: ignore[method-assign]
    try:
        yield picked
    finally:
        del selector.forward  # the class's own again


def drawn(log_chosen: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A frame for each query, as likely as the query says."""
    frame = (log_chosen.detach() + gumbel_noise(log_chosen, generator)).argmax(dim=1)
    return frame, log_chosen.gather(1, frame[:, None]).sum()


def alone(number: int, count: int) -> Pick:
    """One of `count` frames: half are those likeliest to be chosen, so that what is wrongly chosen
    is soon read, and half are drawn evenly. Which they are depends on scores and noise alone.

    Of a video of fewer frames, these in turn.
    """

    def pick(log_chosen: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        log_covered = covered(log_chosen).log()
        best = log_covered.detach().topk(min(count // 2, len(log_covered))).indices
        order = gumbel_noise(log_covered, generator)
        order[best] = torch.inf
        frames = order.topk(min(count, len(log_covered))).indices
        frame = frames[number % len(frames)]
        return frame[None], log_covered[frame]

    return pick


def covered(log_chosen: Tensor) -> Tensor:
    """(..., K, T) log-probabilities -> (..., T): that some query chooses a frame."""
    missed = torch.log1p(-log_chosen.exp().clamp_max(1 - 1e-6)).sum(dim=-2)
    return -torch.expm1(missed.clamp_max(-1e-9))


def entropy(log_chosen: Tensor) -> Tensor:
    """(..., K, T) -> mean entropy of a choice, in nats."""
    return -(log_chosen.exp() * log_chosen).sum(dim=-1).mean()


def loss_by_sets(
    selector: FrameSelector, answer_loss: Callable[[], Tensor], seeds: Sequence[int], reads: int
) -> tuple[Tensor, float] | None:
    """Policy gradient: whole choices are drawn, and those under which the answer is likelier than
    under the others become likelier.

    Args:
        answer_loss: the mean loss of the row's answer tokens, with whatever frames are picked.
        seeds: of the noise of each of the row's visual inputs. reads: how many, 2 at least.

    Returns:
        A loss whose gradient is that of minus the likelihood, an answer token's (the geometric
        mean, from 0 to 1); and its mean over all that was read. None: the row has nothing to
        choose from.
    """
    likelihood, log_drawn, evenness = [], [], []
    for number in range(reads):
        with noise_from(_seeds(seeds, number)), picking(selector, drawn) as picked, torch.no_grad():
            loss = answer_loss()
        if not picked:
            return None
        likelihood.append((-loss.float()).exp())
        log_drawn.append(torch.stack([log for log, _ in picked]).sum())
        evenness.append(torch.stack([each for _, each in picked]).mean())
    reward = torch.stack(likelihood)
    # The mean of the other draws is a baseline that does not depend on a draw itself.
    better = (reward - reward.mean()) * reads / (reads - 1)
    learned = -(better.to(log_drawn[0].device) * torch.stack(log_drawn)).mean()
    return learned - EVENNESS * torch.stack(evenness).mean(), float(reward.mean())


def loss_by_frames(
    selector: FrameSelector,
    answer_loss: Callable[[], Tensor],
    seeds: Sequence[int],
    reads: int,
    words: int,
) -> tuple[Tensor, float] | None:
    """Cross-entropy of the choices to the frames under which the answer is likeliest, each alone.

    Of several videos the first ones are seen together, then the second ones, and so on.

    Args:
        words: answer tokens of the row. For the others and what comes out see `loss_by_sets`.
    """
    losses, log_covered = [], []
    for number in range(reads):
        pick = alone(number, reads)
        with noise_from(seeds), picking(selector, pick) as picked, torch.no_grad():
            loss = answer_loss()
        if not picked:
            return None
        losses.append(loss.float())
        log_covered.append(torch.stack([log for log, _ in picked]).sum())
    read = torch.stack(losses)
    wanted = (-read * words).softmax(dim=0).to(log_covered[0].device)
    return -(wanted * torch.stack(log_covered)).sum(), float((-read).exp().mean())


def _seeds(seeds: Sequence[int], number: int) -> list[int]:
    """Other ones for each draw."""
    return [
        int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
        for seed in seeds
    ]
