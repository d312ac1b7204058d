"""Prompts that `bvllm_adapters.ask` has no place for, by the model's own generate().

They are those without a video or image, which a budget leaves as they are, and those with several
images, whose sum it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.certify.calls import own_call
from bvllm_adapters.certify.report import NotApplicable
from bvllm_adapters.hosts.evaluating import evaluating
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.generation import completed
from bvllm_adapters.video.read import read_video
from bvllm_adapters.weights.device import device_of
from bvllm_lmms_eval.asked import Asked
from bvllm_lmms_eval.stops import words
from bvllm_transformers.shim import TransformersHost


@torch.inference_mode()
def own_answer(
    model: Any, processor: Any, asked: Asked, settings: Mapping[str, Any]
) -> tuple[str, Any]:
    """The answer to one prompt, and what generate() gave: ids, or more where it is asked for.

    Raises:
        ValueError: the host's models cannot be shown this.
    """
    inputs = _inputs(model, processor, asked)
    with evaluating(model):
        out = model.generate(**inputs, **completed(settings, model.generation_config))
    ids = out if isinstance(out, Tensor) else out.sequences
    new = _new(ids[0], inputs["input_ids"][0].to(ids.device))
    return words(processor.tokenizer, new).strip(), out


def _new(ids: Tensor, prompt: Tensor) -> Tensor:
    """(L,) ids that were generated, whether or not those of the prompt came back before them."""
    count = len(prompt)
    return ids[count:] if torch.equal(ids[:count], prompt) else ids


def _inputs(model: Any, processor: Any, asked: Asked) -> dict[str, Any]:
    host = host_of(model)
    if isinstance(host, TransformersHost):
        return _by_messages(model, processor, asked)
    for name, value in (("visuals", asked.visuals), ("history", asked.history),
                        ("system", asked.system)):  # fmt: skip
        if value:
            raise ValueError(
                f"{name}: got {len(value)}, in a prompt "
                f"{'of several visuals' if asked.visuals else 'of text alone'}, which "
                f"{type(host).__name__} has no place for"
            )
    try:
        return own_call(host, model, processor, [None], [asked.text], to="generate")
    except NotApplicable as reason:
        raise ValueError(f"visuals: got none, and a prompt of text alone: {reason}") from reason


def _by_messages(model: Any, processor: Any, asked: Asked) -> dict[str, Any]:
    """Images before the question, as the processors of transformers' models take them."""
    images = [_image(visual.source) for visual in asked.visuals]
    said = [text for turn in asked.history for text in turn] + [asked.text]
    messages: list[dict[str, Any]] = []
    if asked.system is not None:
        messages.append({"role": "system", "content": [_text(asked.system)]})
    for i, text in enumerate(said):
        pictures = [{"type": "image"} for _ in images] if i == 0 else []
        role = "assistant" if i % 2 else "user"
        messages.append({"role": role, "content": [*pictures, _text(text)]})
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    made = processor(text=[prompt], images=images or None, return_tensors="pt")
    device = device_of(model.get_input_embeddings())
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in made.items()}


def _image(source: Any) -> Any:
    """(H, W, 3) pixels of one image among several."""
    read = read_video(source)
    if not read.is_image:
        raise ValueError(
            "visuals: got a video beside others, wanted it alone: a prompt of several videos is "
            "no question that lmms-eval's tasks ask"
        )
    return read.frames[0]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
