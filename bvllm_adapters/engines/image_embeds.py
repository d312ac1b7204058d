"""A question about a video with its visual tokens as embeddings of images, for a server of the
model itself.

The budget is kept before anything is sent: the server's tower sees nothing. It must take embeddings
(vLLM: `--enable-mm-embeds`). Models whose positions would come out wrong are refused by name.

Axes: K tokens of one image, D width of the language model.
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
from bvllm_adapters.question import without
from bvllm_adapters.selectors.export import times
from bvllm_adapters.weights.lora_layers import lora_layers

TIME = "{time} seconds:"  # before each frame


@dataclass(frozen=True, eq=False)
class ImageEmbeds:
    """Images that are embeddings, in time order, and a question.

    Args:
        images: (K, D) each, on the CPU, in the model's dtype.
        texts: what stands before each; "": nothing. question: behind all of them.
        tokens: the visual tokens, with their frames and times.
    """

    images: Sequence[Tensor]
    texts: Sequence[str]
    question: str
    tokens: VisualTokens

    def multi_modal_data(self) -> dict[str, Any]:
        """For vLLM's LLM.generate(), beside a prompt with a placeholder for each image."""
        return {"image": list(self.images)}

    def messages(self) -> list[dict[str, Any]]:
        """For a server's /v1/chat/completions, whose chat template says where images stand."""
        content: list[dict[str, Any]] = []
        for text, image in zip(self.texts, self.images, strict=True):
            if text:
                content.append({"type": "text", "text": text})
            content.append({"type": "image_embeds", "image_embeds": as_base64(image)})
        if self.question:
            content.append({"type": "text", "text": self.question})
        return [{"role": "user", "content": content}]


@torch.no_grad()
def image_embeds(
    video: OpenVideo,
    question: str,
    *,
    max_tokens: int | None = None,
    query: str | None = None,
    each_frame: bool = True,
    text: str = TIME,
) -> ImageEmbeds:
    """The visual tokens that `video.ask` would show its model.

    Args:
        question, max_tokens, query: see `bvllm_adapters.ask`.
        each_frame: an image of each chosen frame behind its time; else all tokens as one image, as
            LLaVA-OneVision reads a video, with its tokens of no frame behind them.
        text: before each frame's image; {time} and {number}, from 1, are filled in. InternVL's own
            is "Frame{number}: ".

    Raises:
        HostError: engines do not take this model's tokens, or would read them wrongly.
        TypeError, ValueError: naming the argument, what came and what was wanted; also for a LoRA
            in the language model, which the server's has not.
    """
    tokens = visual_tokens(video, question, max_tokens, query)
    model, host = video.model, video.host
    if not hasattr(host, "image_embeds"):
        raise HostError(
            f"model: got a {type(model).__name__}, which engines do not serve, wanted prompt_embeds"
        )
    of_frames, of_none = host.image_embeds(model, tokens)
    if lora_layers(model):
        raise ValueError(
            "model: got one with an adapter's LoRA, which the server's language model has not, "
            "wanted it merged (bvllm.merge_lora) and that model served"
        )
    question = without(question).strip()
    if not each_frame:
        return ImageEmbeds([on_cpu(torch.cat([of_frames, of_none]))], [""], question, tokens)
    frames = tokens.frame.unique()
    images = [on_cpu(of_frames[tokens.frame == frame]) for frame in frames]
    said = times(tokens.seconds[frames.to(tokens.seconds.device)].tolist())
    texts = [text.format(time=time, number=i) for i, time in enumerate(said, start=1)]
    source = video.encoded.source
    if source is not None and source.is_image:
        texts = [""]
    return ImageEmbeds(images, texts, question, tokens)
