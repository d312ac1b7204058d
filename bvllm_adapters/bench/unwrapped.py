"""The same host without a budget: its own way from frames to an answer.

Axes: T frames, k of them, S the tower's image size, P patches, C vision width, N visual tokens,
D hidden size of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bvllm_adapters.build import build_projection
from bvllm_adapters.features import Selection, VisualTokens
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.host import Host, OwnWay
from bvllm_adapters.ledger import answering, stage
from bvllm_adapters.video.frames import Frames, FrameSource
from bvllm_adapters.video.prefetch import ahead

CHUNK = 16  # frames that the tower sees at a time, as many as under a budget


def own_way(model: Any) -> OwnWay:
    """As its host says.

    Models of a host that says nothing, as the standalone ones, know no way but the budget: all
    patches of all frames then go to the language model, through a projection of the tokenizer's
    kind and random weights.

    Args:
        model: wrapped or native.
    """
    host: Any = host_of(model)
    if hasattr(host, "own_way"):
        way: OwnWay = host.own_way(model)
        return way
    config = tokenizer_of(model).config
    projection = build_projection(config, config.vision_width) or nn.Identity()
    projection.requires_grad_(False).to(model.get_input_embeddings().weight)
    return OwnWay(
        "every patch of every frame, projected",
        lambda pixels: host.look(model, pixels).patches,
        lambda features, question: projection(features.flatten(0, 1)),
    )


@torch.inference_mode()
def ask_unwrapped(
    model: Any,
    host: Host,
    processor: Any,
    way: OwnWay,
    source: FrameSource,
    question: str,
    prefetch: int,
    **generate: Any,
) -> int:
    """Answer as the host does without a budget, each step booked in the ledger.

    Frames are decoded ahead of the tower and go through it in chunks, as under a budget, so that
    nothing but the visual tokens differs.

    Args:
        way: the model's `own_way`. prefetch: chunks decoded ahead, as in `Encoding`.
        generate: of the host's `answers`.

    Returns:
        How many visual tokens the language model read.
    """

    def chunks() -> Iterator[Tensor]:
        frames = source.read(np.arange(len(source)))
        while True:
            with stage("decode", on_device=False):
                chunk: list[Frames] = list(islice(frames, CHUNK))
            if not chunk:
                return
            with stage("preprocess", on_device=False):
                pixels = host.pixels(processor, np.stack(chunk))
            yield pixels

    features = []
    with ahead(chunks(), prefetch) if prefetch else nullcontext(chunks()) as ready:
        for pixels in ready:
            with stage("tower"):
                features.append(way.see(pixels))
    with stage("projection"):
        tokens = way.make(torch.cat(features), question)
    del features
    with answering() as at_each_token:
        host.answers(
            model, processor, [question], [visual(tokens)],
            logits_processor=at_each_token, **generate,
        )  # fmt: skip
    return len(tokens)


def visual(tokens: Tensor) -> VisualTokens:
    """(N, D) tokens as hosts take them; where they come from is not asked."""
    count = len(tokens)
    return VisualTokens(
        tokens,
        torch.zeros(count, dtype=torch.int64, device=tokens.device),
        torch.ones(count, dtype=torch.float32, device=tokens.device),
        Selection.single_frame(1, tokens.device),
        torch.zeros(1, dtype=torch.float64),
        torch.arange(count, device=tokens.device),
    )
