"""Seeing: the frames of a video -> FrameFeatures, in memory that does not grow with the video.

Pass 1 looks at all frames, a chunk at a time, for the feature of each by which frames are chosen.
Patches are kept while they are few; of a longer video, pass 2 looks at the chosen frames again. A
scout, where the tokenizer has one, does pass 1 at a fraction of the tower's work.

Axes: T frames, H and W of the picture, S the tower's image size, P patches, C vision width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bvllm_adapters.checks import check_count
from bvllm_adapters.features import FrameFeatures
from bvllm_adapters.selectors.choosing import sees

KEEP_FRAMES = 1024
"""Patches of longer videos are not kept: to look at 32 chosen frames again costs at most 3 % of
looking at all of these, and then memory need not grow."""

MEAN, STD = 0.46, 0.27
"""About what pixels of any tower are normalised by."""

Patches = Literal["auto", "keep", "again"]


@dataclass(frozen=True)
class Encoding:
    """How the frames of a video are encoded.

    Args:
        patches: of all frames: "keep" them, or look at chosen frames "again"; "auto": keep those
            of up to 1024 frames, if they fit into device_bytes + host_bytes. With a scout there
            are none to keep, and it is always "again". Whatever it says, all are kept of a stream
            without a scout, which cannot be looked at again, and where choices are soft (by
            `evaluation`, or without a selector), which mix all frames.
        device_bytes: of kept patches that stay on the device; the rest go to the CPU's memory.
        host_bytes: of kept patches there; a limit for "auto" only.
        cache_bytes: of patches of frames looked at again, kept for the next question.
        skip_similar: a frame that differs by no more than this from the last one that was looked
            at shares what was seen of that; in levels of 255, the mean over a 32 x 32 thumbnail.
            None: all are looked at. Changes results.
        chunk_size: frames that are looked at at a time.
        prefetch: chunks decoded ahead of the tower, in another thread; 0: in the same.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """

    patches: Patches = "auto"
    device_bytes: int = 2**30
    host_bytes: int = 2**32
    cache_bytes: int = 2**28
    skip_similar: float | None = None
    chunk_size: int = 16
    prefetch: int = 2

    def __post_init__(self) -> None:
        if self.patches not in get_args(Patches):
            raise ValueError(f"patches: got {self.patches!r}, wanted one of {get_args(Patches)}")
        for name in ("device_bytes", "host_bytes", "cache_bytes", "prefetch"):
            check_count(name, getattr(self, name), least=0)
        check_count("chunk_size", self.chunk_size)
        if self.skip_similar is not None and not self.skip_similar >= 0:
            raise ValueError(f"skip_similar: got {self.skip_similar}, wanted a number >= 0 or None")


def needs_all_patches(tokenizer: Any) -> bool:
    """Whether a BalancedTokenizer mixes patches of all frames, as soft choices do."""
    if tokenizer.frame_selector is None:
        return True
    if tokenizer.chooses_untrained:
        return False  # frames are chosen whole, in training too
    soft = tokenizer.training or tokenizer.config.evaluation != "hard"
    return soft and tokenizer.config.selection_support is None


def as_pictures(pixels: Tensor) -> Tensor:
    """Pixels of a tower -> about the colours from 0 to 1 that they were made of, whoever normalised
    them, for a selector that sees pictures and has nothing but these."""
    return (pixels.float() * STD + MEAN).clamp(0, 1)


def encode_pixels(
    look: Callable[[Tensor], tuple[Tensor, Tensor]],
    pixels: Tensor,
    seconds: Tensor | None,
    tokenizer: Any,
    *,
    chunk_size: int = 16,
) -> FrameFeatures:
    """Features of frames that are pixels already, as the forward() of a model gets them.

    Args:
        look: (k, 3, S, S) pixels -> (k, C) frame features, (k, P, C) patches.
        pixels: (T, 3, S, S). seconds: (T,) their times; None: one a second.
        tokenizer: the BalancedTokenizer that the features are for.
    """
    selector = tokenizer.frame_selector
    scout = tokenizer.scout
    if sees(selector):
        scout = lambda chunk, look: selector.see(as_pictures(chunk))  # noqa: E731
    # With `selection_support`, training looks at few frames again, so that the patches of all need
    # not be kept for the backward pass.
    few = len(pixels) <= KEEP_FRAMES and not tokenizer.training
    keep = needs_all_patches(tokenizer) or (scout is None and few)
    cls, kept = [], []
    for chunk in pixels.split(chunk_size):
        if scout is not None:
            cls.append(scout(chunk, look).clone())
        if scout is None or keep:
            feature, patches = look(chunk)
            if scout is None:
                cls.append(feature.clone())  # as a view it would keep the tower's whole output
            if keep:
                kept.append(patches)

    def look_again(indices: Tensor) -> Tensor:
        chosen = pixels[indices.to(pixels.device)]
        return torch.cat([look(chunk)[1] for chunk in chosen.split(chunk_size)])

    return FrameFeatures(
        torch.cat(cls),
        torch.cat(kept) if keep else look_again,
        seconds,  # type: ignore[arg-type]
    )
