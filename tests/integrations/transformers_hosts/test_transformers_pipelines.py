"""transformers' pipelines of a wrapped model say what its generate() says, under the budget."""

from __future__ import annotations

from typing import Any

import processors
import pytest
import torch
from asked import FRAMES, PLENTY, lengths, prompt_of, seen_by_decoder, settings, wrapped
from PIL import Image
from transformers import pipeline

BUDGET = 7
VIDEO = {"type": "video", "video": FRAMES}
IMAGE = {"type": "image", "image": Image.fromarray(FRAMES[0])}
WORDS = {"type": "text", "text": "What happens?"}
HOW: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}


def said(name: str, model: Any, content: list[Any], **how: Any) -> str:
    ask = pipeline("image-text-to-text", model=model, processor=processors.processor(name))
    found = ask(
        [{"role": "user", "content": content}],
        return_full_text=False,
        generate_kwargs=dict(HOW),
        **how,
    )
    text: str = found[0]["generated_text"]
    return text


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("part", [VIDEO, IMAGE], ids=["video", "image"])
def test_a_pipeline(name: str, part: dict[str, Any]) -> None:
    content = [part, WORDS]
    is_video = part is VIDEO
    how: dict[str, Any] = {"processor_kwargs": settings()} if is_video else {}
    bare = said(name, processors.model(name), content, **how)
    assert said(name, wrapped(name, max_tokens=PLENTY), content, **how) == bare
    model = wrapped(name, max_tokens=BUDGET)
    seen = seen_by_decoder(model)
    inputs = prompt_of(name, [{"role": "user", "content": content}], FRAMES if is_video else None)
    found = said(name, model, content, **how)
    assert lengths(seen)[0] < inputs["input_ids"].shape[1]
    with torch.no_grad():
        out = model.generate(**inputs, **HOW)[:, inputs["input_ids"].shape[1] :]
    want = processors.processor(name).batch_decode(out, skip_special_tokens=True)[0]
    assert found.strip() == want.strip()
