"""What an open video gives to a question, and tensors as servers take them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from bvllm_adapters.conversation import OpenVideo
from bvllm_adapters.features import VisualTokens
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.evaluating import evaluating
from bvllm_adapters.hosts.generation import check_asking
from bvllm_adapters.question import without


@torch.no_grad()
def visual_tokens(
    video: OpenVideo,
    question: str,
    max_tokens: int | None = None,
    query: str | None = None,
    history: Sequence[tuple[str, str]] = (),
    system: str | None = None,
) -> VisualTokens:
    """Those that `video.ask` would show its model.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was wanted.
    """
    if not isinstance(video, OpenVideo):
        raise TypeError(f"video: got {type(video).__name__}, wanted one that open_video has opened")
    check_asking(video.host, [question], max_tokens, history, system, {})
    with evaluating(video.model):
        tokens: list[VisualTokens] = tokenizer_of(video.model)(
            [video.features], [without(question)], max_tokens=max_tokens, queries=[query]
        )
    return tokens[0]


def as_base64(tensor: Tensor) -> str:
    """As vLLM's server reads tensors: what torch.save writes, in base64."""
    file = io.BytesIO()
    torch.save(on_cpu(tensor), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy of its own, so that a part of a larger tensor does not take all of it along."""
    return tensor.detach().to("cpu", copy=True).contiguous()
