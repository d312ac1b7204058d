"""Chosen frames as engines take them: what is written, and what a server makes of it."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import numbers, picture
from PIL import Image
from vllm_stub import Refused, check_chat, offline, serving, video_of

import bvllm_adapters as bvllm
from bvllm_adapters.engines.readings import READINGS
from bvllm_adapters.engines.sent_frames import by_milliseconds, sent_frames
from bvllm_adapters.engines.writers import (
    gemini_contents,
    messages,
    processor_inputs,
    vllm_request,
    vllm_video,
)
from bvllm_adapters.video.frames import Video

QUESTION = "What happens?"
UNEVEN = [4.0, 57.0, 59.0]
NUMBERS = [4, 57, 59]


def video(seconds: list[float] = UNEVEN, *, duration: float = 60.0, **more: Any) -> Video:
    """A picture for each second, which says in it which it is; as `select_frames` would give it."""
    frames = np.stack([picture(round(second)) for second in seconds])
    how = {"source": "clip.mp4", "is_image": False, "frame_count": 60, "duration": duration}
    return Video(frames, np.array(seconds), **{**how, **more})


def test_a_record_says_each_frames_time() -> None:
    sent = sent_frames(video(), "qwen3_vl")
    assert sent.each == 2 and numbers(sent.repeated) == [4, 4, 57, 57, 59, 59]
    assert sent.seconds == [4.0, 4.0, 57.0, 57.0, 59.0, 59.0]
    assert sent.metadata == {
        "total_num_frames": 60_000,
        "fps": 1000.0,
        "duration": 60.0,
        "frames_indices": [4000, 4000, 57000, 57000, 59000, 59000],
    }
    assert all(type(index) is int for index in sent.metadata["frames_indices"])
    once = sent_frames(video(), "internvl")
    assert once.each == 1 and once.repeated is once.frames and once.seconds == UNEVEN


@given(
    st.lists(st.integers(0, 10**7), min_size=1, max_size=50, unique=True),
    st.integers(0, 10**7),
    st.integers(1, 2),
)
def test_times_are_exact_to_the_millisecond(frames: list[int], tail: int, each: int) -> None:
    seconds = np.array(sorted(frames)) / 1000
    told = by_milliseconds(seconds, seconds[-1] + tail / 1000, each)
    indices = told["frames_indices"]
    assert [index / told["fps"] for index in indices] == seconds.repeat(each).tolist()
    assert told["total_num_frames"] >= len(indices) and told["total_num_frames"] > indices[-1]
    assert told["duration"] == pytest.approx(told["total_num_frames"] / told["fps"])


def test_even_frames_go_at_their_step_and_others_are_refused() -> None:
    """Where a model knows one step for a whole clip."""
    even = sent_frames(video([10.0, 22.0, 34.0, 46.5]), "qwen2_5_vl")
    assert even.each == 1 and even.metadata["frames_indices"] == [0, 1, 2, 3]
    assert even.metadata["fps"] == pytest.approx(3 / 36.5)
    assert even.metadata["duration"] == pytest.approx(4 / 3 * 36.5)
    assert sent_frames(video([7.0]), "qwen2_5_vl").metadata["fps"] == 1
    chosen = bvllm.select_frames(np.stack([picture(i) for i in range(100)]), num_frames=8,
                                 selector="uniform")  # fmt: skip
    step = np.diff(chosen.seconds).mean()
    assert sent_frames(chosen, "qwen2_5_vl").metadata["fps"] == pytest.approx(1 / step)
    with pytest.raises(ValueError, match=r"chosen: got frames up to 25.50 s away from steps of 27"):
        sent_frames(video(), "qwen2_5_vl")


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(ValueError, match="model: got 'qwen9', wanted the model_type of one whose"):
        sent_frames(video(), "qwen9")
    image = video([0.0], is_image=True)
    with pytest.raises(ValueError, match="chosen: got an image"):
        vllm_request(image, QUESTION, model="qwen3_vl")
    with pytest.raises(ValueError, match="size: got 4, wanted an int >= 16"):
        sent_frames(video(), "qwen3_vl", size=4)
    nothing = Video(np.empty((0, 8, 8, 3), np.uint8), np.empty(0), "clip.mp4", False, 60, 60.0)
    for none in (nothing, video(duration=float("inf"))):
        with pytest.raises(ValueError, match="chosen: got frames at"):
            sent_frames(none, "qwen3_vl")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_times_that_are_none_are_refused_by_every_writer(bad: float) -> None:
    shown = replace(video(), seconds=np.array([0.0, 1.0, bad]))
    for write in (messages, gemini_contents):
        with pytest.raises(ValueError, match=r"seconds: got \[0.0, 1.0, "):
            write(shown, QUESTION)
    for model in READINGS:
        for write in (vllm_request, processor_inputs):
            with pytest.raises(ValueError, match="chosen: got frames at"):
                write(shown, QUESTION, model=model)
        with pytest.raises(ValueError, match="chosen: got frames at"):
            vllm_video(shown, model=model)


@pytest.mark.parametrize("seconds", [[3.0, 2.0, 1.0], [-1.0, 0.0, 1.0]])
def test_times_out_of_order_or_before_the_beginning_are_refused(seconds: list[float]) -> None:
    for model in READINGS:
        with pytest.raises(ValueError, match="wanted one or more, each with its time, 0 or later"):
            sent_frames(replace(video(), seconds=np.array(seconds)), model)


def test_a_frame_may_be_sent_twice() -> None:
    twice = video([4.0, 4.0, 57.0])
    assert sent_frames(twice, "qwen3_vl").seconds == [4.0] * 4 + [57.0] * 2
    texts = [part["text"] for part in messages(twice, "")[0]["content"] if part["type"] == "text"]
    assert texts == ["4.0 seconds:", "4.0 seconds:", "57.0 seconds:"]
    with pytest.raises(ValueError, match=r"away from steps of 0.00 s"):
        sent_frames(video([4.0, 4.0]), "qwen2_5_vl")


def test_a_size_is_the_longest_edge() -> None:
    small = sent_frames(video(), "internvl", size=48)
    assert small.frames.shape == (3, 32, 48, 3) and small.frames.dtype == np.uint8
    large = sent_frames(video(), "internvl", size=960)
    assert large.frames.shape == (3, 64, 96, 3)


def test_gemini_gets_images_behind_their_times() -> None:
    (turn,) = gemini_contents(video(), QUESTION)
    *pairs, last = turn["parts"]
    assert turn["role"] == "user" and last == {"text": QUESTION}
    assert [part["text"] for part in pairs[::2]] == [
        "4.0 seconds:",
        "57.0 seconds:",
        "59.0 seconds:",
    ]
    images = [part["inline_data"] for part in pairs[1::2]]
    assert {image["mime_type"] for image in images} == {"image/jpeg"}
    frames = [Image.open(io.BytesIO(base64.b64decode(image["data"]))) for image in images]
    assert numbers(np.stack([np.asarray(frame) for frame in frames])) == NUMBERS
    assert len(gemini_contents(video([0.0], is_image=True), "")[0]["parts"]) == 1


def test_five_writers_ask_last_or_not_at_all() -> None:
    for written in (
        messages(video(), QUESTION)[0]["content"],
        vllm_request(video(), QUESTION, model="qwen3_vl")["messages"][0]["content"],
        processor_inputs(video(), QUESTION, model="qwen3_vl")[0][0]["content"],
    ):
        assert written[-1] == {"type": "text", "text": QUESTION}
        assert sum(part["type"] == "text" and part["text"] == QUESTION for part in written) == 1
    assert len(vllm_request(video(), " ", model="qwen3_vl")["messages"][0]["content"]) == 1


# What a vLLM server makes of it, see vllm_stub.


def saw(path: str, request: dict[str, Any], **how: Any) -> dict[str, Any]:
    frames, metadata = video_of(request, **how)
    return {"numbers": numbers(frames), **metadata}


def test_a_server_gets_all_frames_at_their_times() -> None:
    many = video([float(second) for second in range(0, 90, 2)], duration=90.0)  # beyond its 32
    for own in (None, {"num_frames": -1}, {"num_frames": 8, "fps": 2}):
        with serving(lambda path, request, own=own: saw(path, request, own=own)) as post:
            got = post("/v1/chat/completions", vllm_request(many, QUESTION, model="qwen3_vl"))
            assert got["numbers"] == [n for n in range(0, 90, 2) for _ in range(2)]
            seconds = [index / got["fps"] for index in got["frames_indices"]]
            assert seconds == [float(n) for n in got["numbers"]] and got["duration"] == 90.0
            assert got["do_sample_frames"] is False


def test_a_server_takes_the_first_moment_too() -> None:
    """One frame at 0 s that is sent twice: a total of less would be refused."""
    request = vllm_request(video([0.0], duration=0.0), QUESTION, model="qwen3_vl")
    assert video_of(request)[1]["total_num_frames"] == 2


def test_a_server_without_the_flag_refuses_and_does_not_guess() -> None:
    request = vllm_request(video(), QUESTION, model="internvl")
    with serving(lambda path, request: saw(path, request, trusted=False)) as post:
        with pytest.raises(Refused, match="--trust-request-mm-kwargs"):
            post("/v1/chat/completions", request)


def test_offline_gets_what_the_server_gets() -> None:
    for model in READINGS:
        chosen = video([3.0, 6.0, 9.0, 12.0])
        frames, metadata = offline(*vllm_video(chosen, model=model))
        pictures, served = video_of(vllm_request(chosen, QUESTION, model=model))
        assert numbers(frames) == numbers(pictures)
        assert {**metadata, "video_backend": None} == {**served, "video_backend": None}


def test_images_are_within_what_a_server_takes() -> None:
    many = video([float(second) for second in range(200)], duration=200.0)
    request = {"messages": messages(many, QUESTION)}
    check_chat(request)
    (turn,) = request["messages"]
    with pytest.raises(Refused, match="1000 of image_url"):
        check_chat({"messages": [{**turn, "content": turn["content"] * 5}]})
