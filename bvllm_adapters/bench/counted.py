"""FLOPs and bytes of each stage, counted from shapes: nothing is computed, and no memory taken.

Axes: T frames, S the tower's image size, P patches, C vision width, K choices, M chosen frames,
R tokens per frame, H Q-Former width, N visual tokens, D hidden size of the language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.bench.reading import Reading
from bvllm_adapters.bench.shapes import counted, empty, flops_of, in_shape, shape_of
from bvllm_adapters.bench.unwrapped import CHUNK, own_way
from bvllm_adapters.budget_merger import merge_to, shares_in_prompt
from bvllm_adapters.features import Selection
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.seeing.encoding import KEEP_FRAMES, Encoding
from bvllm_adapters.spatial_sampler import knows_counts
from bvllm_adapters.trace import FrameTrace, Trace


@dataclass(frozen=True)
class Work:
    """Of one stage: floating-point operations, and bytes of what it leaves for those after it.

    None: it has no matrix products to count; what it leaves is counted elsewhere.
    """

    flops: int | None
    bytes: int | None


@dataclass(frozen=True)
class Setting:
    """What is asked of a model.

    Args:
        text_tokens: of the prompt, without the visual ones. new_tokens: that are generated.
        frame: (H, W, 3) a decoded frame, of which only the shape counts.
        pixels: (1, 3, S, S) the same as the tower takes it.
    """

    question: str
    text_tokens: int
    new_tokens: int
    frame: Tensor
    pixels: Tensor


class Counter:
    """Counts what a model takes to answer, once for each shape.

    Args:
        model: wrapped or native, maybe on the meta device.
    """

    def __init__(self, model: nn.Module, setting: Setting) -> None:
        self.setting = setting
        self.ghost = ghost = in_shape(model)
        self.tokenizer: Any = tokenizer_of(ghost)
        host, self.own = host_of(ghost), own_way(ghost)

        def pixels(frames: int) -> Tensor:
            return empty(frames, *setting.pixels.shape[1:])

        # What comes of so many frames in one call, and its FLOPs.
        def look(pixels: Tensor) -> tuple[Tensor, Any]:
            features = host.look(ghost, pixels)
            return features.cls, features.patches

        self.look = cache(lambda frames: shape_of(lambda: look(pixels(frames))))
        self.glance = cache(
            lambda frames: shape_of(lambda: self.tokenizer.scout(pixels(frames), look))
        )
        self.see = cache(lambda frames: shape_of(lambda: self.own.see(pixels(frames))))
        self.reading = Reading.of(ghost)

    def wrapped(self, trace: Trace) -> dict[str, Work]:
        """Stage -> what it takes with a budget.

        Args:
            trace: of an answer, or an `expected` one.
        """
        tokenizer, frames, chosen = self.tokenizer, trace.frames_decoded, len(trace.frames)
        work = self._read(frames)
        passes = frames if trace.tower_passes is None else trace.tower_passes
        in_chunks = 0 if tokenizer.scout is not None else min(frames, passes)
        again = passes - in_chunks  # one by one
        feature, patches = self.look(1)[0]
        work["tower"] = Work(
            _in_chunks(self.look, in_chunks) + again * counted("tower", self.look(1)[1]),
            (chosen if again else frames) * patches.nbytes
            + (0 if tokenizer.scout is not None else frames * feature.nbytes),
        )
        if tokenizer.scout is not None:
            feature = self.glance(1)[0]
            work["scout"] = Work(
                counted("scout", _in_chunks(self.glance, frames)), frames * feature.nbytes
            )

        text = empty(len(tokenizer.question_tokenizer(self.setting.question)), dtype=torch.int64)
        by_scores = tokenizer.config.frame_count != "fixed"
        choices = Selection.whole(_chosen(trace, one_each=by_scores or frames == 1), frames)
        flops = 0
        if tokenizer.frame_selector is not None and frames > 1:
            cls = empty(frames, feature.shape[1], dtype=tokenizer.dtype)
            seconds = empty(frames, dtype=torch.float64)
            # How many frames are chosen may follow from values, which there are none of here.
            read = getattr(tokenizer.frame_selector, "scores", tokenizer.frame_selector)
            _, flops = shape_of(lambda: read(cls, text, seconds=seconds))
        row = choices.frame[0].nbytes
        if tokenizer.frame_selector is not None and not by_scores and frames > 1:
            # Queries choose by a weight for each frame.
            choices = Selection(choices.weights, choices.size)
            row = choices.weights[0].nbytes
        work["selector"] = Work(flops, len(choices) * row)

        flops = 0
        if tokenizer.temporal_merger is not None:  # of values, since what is equal is merged
            _, flops = flops_of(lambda: tokenizer.temporal_merger(choices))
        work["merge"] = Work(flops, chosen * row)

        mixed = empty(chosen, *patches.shape[1:], dtype=tokenizer.dtype)
        sampled, flops = self._sampled(mixed, len(text))
        work["sampler"] = Work(flops, sampled.nbytes)

        shares = [frame.tokens for frame in trace.frames if frame.tokens]
        _, flops = shape_of(lambda: [merge_to(sampled[:1], share) for share in shares])
        tokens = merged = empty(trace.num_tokens, sampled.shape[2], dtype=sampled.dtype)
        work["budget"] = Work(flops, merged.nbytes)

        flops = 0
        if tokenizer.projection is not None:
            tokens, flops = shape_of(lambda: tokenizer.projection(merged))
        work["projection"] = Work(flops, tokens.nbytes)
        return work | self._answer(len(tokens))

    def unwrapped(self, frames: int) -> tuple[dict[str, Work], int]:
        """Stage -> what it takes in the host's `own_way`, and the visual tokens of that."""
        feature = self.see(1)[0]
        features = feature.expand(frames, -1, -1)
        tokens, flops = shape_of(lambda: self.own.make(features, self.setting.question))
        work = self._read(frames)
        work["tower"] = Work(
            counted("tower", _in_chunks(self.see, frames)), frames * feature.nbytes
        )
        work["projection"] = Work(flops, tokens.nbytes)
        return work | self._answer(len(tokens)), len(tokens)

    def expected(self, frames: int, max_tokens: int | None = None) -> Trace:
        """Of an answer in which as many frames are chosen as may be, about equally often."""
        config = self.tokenizer.config
        budget = config.max_tokens if max_tokens is None else max_tokens
        every = self.tokenizer.frame_selector is None
        chosen = frames if every else min(frames, config.frames_within(budget))
        if every:
            choices = [1.0] * frames
        elif config.frame_count == "fixed":
            edges = [i * config.num_frames // chosen for i in range(chosen + 1)]
            choices = [float(end - begin) for begin, end in pairwise(edges)]
        else:
            choices = [config.num_frames / chosen] * chosen
        at = [i * frames // chosen for i in range(chosen)]
        (_, patches), _ = self.look(1)
        each = self._sampled(empty(1, *patches.shape[1:], dtype=self.tokenizer.dtype), 2)[0]
        (shares,) = shares_in_prompt([[each.shape[1]] * chosen], [choices], budget)
        room = Encoding().device_bytes + Encoding().host_bytes
        kept = frames <= KEEP_FRAMES and frames * patches.nbytes <= room
        passes = chosen if config.scout is not None else frames if kept else frames + chosen
        return Trace(
            frames_decoded=frames,
            frames=tuple(
                FrameTrace(frame, float(frame), {frame: 1.0}, times, share)
                for frame, times, share in zip(at, choices, shares, strict=True)
            ),
            num_tokens=sum(shares),
            max_tokens=budget,
            seconds={},
            tower_passes=passes,
        )

    def _sampled(self, frames: Tensor, words: int) -> tuple[Tensor, int]:
        """(M, R, H) tokens of (M, P, C) frames and a question of so many words, and the FLOPs."""
        sampler = self.tokenizer.spatial_sampler
        if sampler is None:
            return frames, 0
        how = {"counts": [len(frames)]} if knows_counts(sampler.forward) else {}
        rows = 1 if how else len(frames)
        text, mask = (empty(rows, words, dtype=kind) for kind in (torch.int64, torch.bool))
        return shape_of(lambda: sampler(frames, text, mask, **how))

    def _read(self, frames: int) -> dict[str, Work]:
        return {
            "decode": Work(None, frames * self.setting.frame.nbytes),
            "preprocess": Work(None, frames * self.setting.pixels.nbytes),
        }

    def _answer(self, visual_tokens: int) -> dict[str, Work]:
        prompt, further = self.setting.text_tokens + visual_tokens, self.setting.new_tokens - 1
        lengths = range(prompt + 1, prompt + 1 + further)
        cost = self.reading
        return {
            "prefill": Work(cost.flops(1, prompt), prompt * cost.cache_bytes),
            "generate": Work(
                sum(cost.flops(length, length) for length in lengths), further * cost.cache_bytes
            ),
        }


def _in_chunks(look: Callable[[int], tuple[Any, int]], frames: int) -> int:
    """FLOPs of frames that are looked at 16 at a time; some are of a chunk, most of its frames."""
    one, whole = look(1)[1], look(CHUNK)[1]
    each = (whole - one) // (CHUNK - 1)
    return frames * each + -(-frames // CHUNK) * (one - each)


def _chosen(trace: Trace, *, one_each: bool) -> Tensor:
    """(K,) the frames of the choices that were made; one of each frame where it is not queries that
    choose, or where there is but one frame."""
    return torch.tensor(
        [
            frame.frame
            for frame in trace.frames
            for _ in range(1 if one_each else max(1, round(frame.choices)))
        ]
    )
