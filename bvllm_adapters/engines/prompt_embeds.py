"""A question about a video as one line of embeddings, for a server of the language model alone.

The budget is kept before anything is sent: the server sees no video. It serves what
`save_language_model` wrote, and must take prompt embeddings (vLLM: `--enable-prompt-embeds`). The
prompt is embedded whole, in the host's own chat format and by its own tokenizer, so that nothing
depends on how a server reads text; the answer is the host's own, up to the rounding of kernels.

Axes: S tokens of the prompt, N visual ones among them, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.conversation import OpenVideo
from bvllm_adapters.engines.visual_tokens import as_base64, on_cpu, visual_tokens
from bvllm_adapters.features import VisualTokens
from bvllm_adapters.hosts.host import HostError
from bvllm_adapters.hosts.splice import splice
from bvllm_adapters.question import without
from bvllm_adapters.weights.device import device_of


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """A prompt that is ready.

    Args:
        embeds: (S, D) on the CPU, in the model's dtype.
        tokens: the visual ones among them, with their frames and times.
    """

    embeds: Tensor
    tokens: VisualTokens

    def prompt(self) -> dict[str, Any]:
        """For vLLM's LLM.generate()."""
        return {"prompt_embeds": self.embeds}

    def completion(self) -> dict[str, Any]:
        """Beside the other fields of a request to /v1/completions (`extra_body`)."""
        return {"prompt_embeds": as_base64(self.embeds)}

    def messages(self) -> list[dict[str, Any]]:
        """For /v1/chat/completions: one part, around which the chat template that
        `save_language_model` wrote puts nothing."""
        part = {"type": "prompt_embeds", "data": as_base64(self.embeds)}
        return [{"role": "user", "content": [part]}]


@torch.no_grad()
def prompt_embeds(
    video: OpenVideo,
    question: str,
    *,
    max_tokens: int | None = None,
    query: str | None = None,
    history: Sequence[tuple[str, str]] = (),
    system: str | None = None,
) -> PromptEmbeds:
    """What `video.ask` would give its language model to read.

    Args: see `bvllm_adapters.ask`.

    Raises:
        HostError: a model whose language model cannot be served alone.
        TypeError, ValueError: naming the argument, what came and what was wanted.
    """
    host = check_served_alone(video)
    model: Any = video.model
    tokens = visual_tokens(video, question, max_tokens, query, history, system)
    more: dict[str, Any] = {} if system is None else {"system": without(system)}
    if history:
        more["history"] = [[(without(asked), without(said)) for asked, said in history]]
    (ids,) = host.prompt_ids(video.processor, [without(question)], **more)
    embed = model.get_input_embeddings()
    spliced = splice(
        ids[None].to(device_of(embed)), embed, [tokens.tokens], host.placeholders(model)
    )
    return PromptEmbeds(on_cpu(spliced.inputs_embeds[0]), tokens)


def check_served_alone(video: OpenVideo) -> Any:
    """The host of a model whose language model can be served alone.

    Raises:
        HostError: it cannot.
    """
    if not isinstance(video, OpenVideo):
        raise TypeError(f"video: got {type(video).__name__}, wanted one that open_video has opened")
    if not hasattr(video.host, "prompt_ids"):
        raise HostError(
            f"model: got a {type(video.model).__name__}, whose prompts are more than one line of "
            "embeddings, or which engines serve themselves; wanted image_embeds, where it takes "
            "them, or its frames (bvllm_adapters.engines.writers)"
        )
    return video.host
