"""How a selector without training is asked: for as many frames as the budget has room for."""

from __future__ import annotations

import torch
from torch import nn

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
) -> Selection:
    """Whole frames of one video; an image has nothing to choose from.

    Args:
        max_tokens: what the budget has for this video. native: tokens of a frame as it is.
        frames, tokens_per_frame: as the caller wants them; None: by the rule of `split`.
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
    selection: Selection = selector(
        video.cls, question, seconds=video.seconds, num_frames=wanted, generator=generator
    )
    return selection
