"""Videos beside pictures in one batch, and processors that keep times to themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from processors import PROCESSORS, model, processor

import bvllm_adapters as bvllm
from bvllm_transformers.conversation_prompts import prompt_inputs
from bvllm_transformers.layout import Layout
from bvllm_transformers.tiny import TEMPLATE, byte_tokenizer

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_picture_beside_videos(name: str) -> None:
    """Of some models a video's prompt has arguments that a picture's has not."""
    made, its_processor = bvllm.wrap(model(name), max_tokens=20), processor(name)
    opened = [
        bvllm.open_video(made, shown, processor=its_processor)
        for shown in (FRAMES, FRAMES[3], FRAMES[::-1].copy(), FRAMES[5])
    ]
    items = [(video, question) for video in opened for question in ("What?", "Who is it there?")]
    new = {"max_new_tokens": 5, "do_sample": False}
    alone = [video.ask(question, **new).text for video, question in items]
    assert [answer.text for answer in bvllm.ask_batch(items, **new)] == alone
    backwards = [answer.text for answer in bvllm.ask_batch(items[::-1], **new)]
    assert backwards == alone[::-1]


@pytest.mark.skipif(not hasattr(transformers, "MuseGlimmerProcessor"), reason="an older one")
def test_a_processor_that_drops_the_times_it_needs() -> None:
    special = ("<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>", "<|vid_start|>",
               "<|vid_end|>", "<|vid_frame_separator|>")  # fmt: skip
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    muse = transformers.MuseGlimmerProcessor(
        image_processor=transformers.MuseGlimmerImageProcessor(**patches),
        video_processor=transformers.MuseGlimmerVideoProcessor(
            max_video_frame_tokens=64, **patches
        ),
        tokenizer=byte_tokenizer(*special),
        chat_template=TEMPLATE.replace("VIDEO", "<|video|>").replace("IMAGE", "<|patch|>"),
    )
    seconds = torch.tensor([0.5, 7.0])
    inputs = prompt_inputs(muse, Layout(48, 64, 0), seconds, "What?", frames_per_look=2)
    text = muse.tokenizer.decode(inputs["input_ids"][0])
    assert "7.0" in text and "What?" in text
    assert "video_metadata" not in inputs
