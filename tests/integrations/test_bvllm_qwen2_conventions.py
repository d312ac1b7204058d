"""What users of transformers write first works with the native host as with any other model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer
from transformers.video_utils import VideoMetadata

import bvllm_adapters as bvllm
from bvllm_adapters.evaluation.needle import DEMO_VIDEO, demo_haystack
from bvllm_adapters.question import QuestionTokenizer
from bvllm_qwen2.shim import DEMO

CHAT = "<|im_start|>user\n<video>{}<|im_end|>\n<|im_start|>assistant\n"
QUESTION = demo_haystack().questions[0]
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}


def message(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*parts]}


def about(video: Any, question: str) -> list[dict[str, Any]]:
    return [message({"type": "video", "video": video}, {"type": "text", "text": question})]


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    model = AutoModelForMultimodalLM.from_pretrained(DEMO, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(DEMO)


@pytest.fixture
def processor(tiny_qwen2_session: Any) -> Any:
    return tiny_qwen2_session[1]


# --- the snippet that everybody writes ------------------------------------------------------------


def test_the_usual_snippet_answers(demo: Any) -> None:
    model, processor = demo
    inputs = processor.apply_chat_template(
        about(str(DEMO_VIDEO), QUESTION.text),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    out = model.generate(**inputs, max_new_tokens=8)
    new = out[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(new, skip_special_tokens=True) == [QUESTION.answer]
    answer = bvllm.ask(model, DEMO_VIDEO, QUESTION.text, processor=processor)
    assert answer.text == QUESTION.answer


def test_the_demos_template_renders_parts_and_strings_alike(demo: Any) -> None:
    """So does its tokenizer alone, by the file that lies in the demo's folder."""
    _, processor = demo
    wanted = "<|im_start|>user\n<video>What?<|im_end|>\n<|im_start|>assistant\n"
    parts = about(DEMO_VIDEO, "What?")
    plain = [{"role": "user", "content": "<video>What?"}]
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    for messages in (parts, plain):
        assert processor.apply_chat_template(messages, add_generation_prompt=True) == wanted
        rendered = tokenizer.apply_chat_template(
            messages,
            chat_template=(DEMO / "chat_template.jinja").read_text(),
            tokenize=False,
            add_generation_prompt=True,
        )
        assert rendered == wanted


def test_a_template_of_strings_never_prints_a_list(processor: Any) -> None:
    plain = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    text = processor.apply_chat_template(
        [message({"type": "image", "image": "a"}, {"type": "text", "text": " a <vid<image>eo>?"})],
        chat_template=plain,
    )
    assert text == "[<image> a ?]"
    for content, told in (
        (3, "content: got int, wanted a string or a list"),
        (["words"], "content: got a part of type str 'words'"),
        ([{"type": "audio"}], "content: got a part of type 'audio'"),
        ([{"type": "text"}], "content: got a part of type 'text'"),
    ):
        with pytest.raises(ValueError, match=told):
            processor.apply_chat_template([{"role": "user", "content": content}])


@pytest.mark.parametrize("auto", [AutoModelForMultimodalLM, AutoModelForImageTextToText])
def test_auto_classes_find_it(auto: Any) -> None:
    assert type(auto.from_pretrained(DEMO)).__name__ == "BvllmQwen2ForConditionalGeneration"


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipelines_take_it(
    demo: Any, task: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "any-to-any":
        pytest.importorskip("torchvision")
    model, processor = demo
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        pipe: Any = pipeline(task, model=model, processor=processor, device="cpu")
        text = about(str(DEMO_VIDEO), QUESTION.text)
        out = pipe(text=text, max_new_tokens=8, return_full_text=False)
    assert out[0]["generated_text"].strip() == QUESTION.answer
    assert "not supported" not in caplog.text


# --- generate() -----------------------------------------------------------------------------------


def test_prompts_come_back_before_what_is_new(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    texts = [CHAT.format("what?"), CHAT.format("what is it, and where is it going to?")]
    videos = [noise["long"], noise["short"]]
    for side in ("left", "right"):
        inputs = processor(text=texts, videos=videos, padding_side=side)
        prompt = inputs["input_ids"]
        for settings in (
            {}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2},
            {"do_sample": True, "num_return_sequences": 3},
        ):  # fmt: skip
            torch.manual_seed(0)
            out = model.generate(**inputs, **(GREEDY | settings))
            torch.manual_seed(0)
            full = model.generate(
                **inputs, **(GREEDY | settings), return_dict_in_generate=True, output_scores=True
            )
            assert torch.equal(full.sequences, out) and len(full.scores) <= 5
            each = len(out) // 2
            before = prompt.repeat_interleave(each, dim=0)
            assert torch.equal(out[:, : prompt.shape[1]], before)
            assert prompt.shape[1] < out.shape[1] <= prompt.shape[1] + 5


def test_lengths_streamers_and_criteria_count_the_prompt(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = processor(text=CHAT.format("what?"), videos=noise["long"])
    length = inputs["input_ids"].shape[1]
    endless = {"do_sample": False, "eos_token_id": -1}
    assert model.generate(**inputs, max_length=length + 2, **endless).shape[1] == length + 2
    given = GenerationConfig(max_length=length + 3, **endless)
    assert model.generate(**inputs, generation_config=given).shape[1] == length + 3
    with pytest.raises(ValueError, match=f"max_length: got {length}, wanted more than the"):
        model.generate(**inputs, max_length=length)

    seen: list[int] = []

    class Streamed(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            seen.extend(value.flatten().tolist())

        def end(self) -> None:
            pass

    def stop(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        assert torch.equal(ids[:, :length], inputs["input_ids"])
        return torch.full((len(ids),), ids.shape[1] == length + 2)

    out = model.generate(
        **inputs, streamer=Streamed(), stopping_criteria=[stop], max_new_tokens=9, **endless
    )
    assert out.shape[1] == length + 2 and out[0].tolist() == seen


def test_continuing_prompts_gives_new_ids_alone(tiny_qwen2: Any, noise: Any) -> None:
    model, processor = tiny_qwen2
    inputs = processor(text=CHAT.format("what?"), videos=noise["long"])
    answer = bvllm.ask(
        model, noise["long"], "what?", processor=processor, return_dict_in_generate=True, **GREEDY
    )
    assert answer.generated.sequences.shape[1] <= 5
    out = model.generate(inputs=inputs.pop("input_ids"), **inputs, **GREEDY)
    assert out.shape[1] > 5


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({"max_new_token": 3}, TypeError, "max_new_token: got 3, .*perhaps max_new_tokens"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: got 0"),
        ({"prompt_lookup_num_tokens": 3}, ValueError, "prompt_lookup_num_tokens: got 3"),
        ({"input_ids": None}, ValueError, "input_ids: got None, wanted the ids of the prompts"),
    ],
)
def test_what_generate_cannot_do_is_named(
    tiny_qwen2: Any, noise: Any, settings: Any, kind: Any, told: str
) -> None:
    model, processor = tiny_qwen2
    inputs = processor(text=CHAT.format("what?"), videos=noise["long"])
    with pytest.raises(kind, match=told):
        model.generate(**{**inputs, **settings})


# --- which frames ---------------------------------------------------------------------------------


def seconds(processor: Any, video: Any = DEMO_VIDEO, **options: Any) -> list[float]:
    inputs = processor(text=CHAT.format("what?"), videos=[video], **options)
    assert inputs["frame_counts"].tolist() == [len(inputs["seconds"])]
    found: list[float] = inputs["seconds"].tolist()
    return found


def test_frames_are_sampled_as_asked(processor: Any, noise: Any) -> None:
    every = bvllm.read_video(DEMO_VIDEO, fps=None)
    assert len(seconds(processor)) == 64
    assert len(seconds(processor, fps=0.5)) == 32
    eight = seconds(processor, num_frames=8)
    assert len(eight) == 8 and eight[0] == 0 and eight[-1] == every.seconds[-1]
    assert len(seconds(processor, do_sample_frames=False)) == len(every.frames)
    assert seconds(processor, do_sample_frames=True, num_frames=8) == eight
    for group in ("videos_kwargs", "common_kwargs"):
        assert seconds(processor, **{group: {"num_frames": 8}}) == eight
    read = bvllm.read_video(DEMO_VIDEO)
    assert len(seconds(processor, read)) == 64
    assert seconds(processor, read, num_frames=3) == [0, 32, 63]
    assert seconds(processor, read, fps=0.5) == [*range(0, 64, 2)]
    assert seconds(processor, noise["long"], num_frames=3) == [0, 5, 10]
    assert seconds(processor, noise["long"], fps=2.0) == [i / 2 for i in range(11)]
    short = seconds(processor, noise["long"], num_frames=99)
    assert len(short) == 11


def test_the_template_hands_sampling_on(processor: Any, noise: Any) -> None:
    def count(**options: Any) -> int:
        inputs = processor.apply_chat_template(
            about(noise["long"], "what?"), tokenize=True, return_dict=True, **options
        )
        return int(inputs["frame_counts"])

    assert count() == 11
    assert count(num_frames=3) == count(processor_kwargs={"num_frames": 3}) == 3
    assert count(processor_kwargs={"videos_kwargs": {"num_frames": 3}}) == 3
    assert count(num_frames=3, return_tensors="pt", padding=True) == 3
    with pytest.raises(TypeError, match="num_frame: got 3, which this processor has no use for"):
        count(num_frame=3)
    with pytest.raises(TypeError, match="num_frame: got 3"):
        count(processor_kwargs={"num_frame": 3})
    chat = about(noise["long"], "what?")
    inputs = processor.apply_chat_template(chat, tokenize=True, questions="where?")
    plain = processor(text=CHAT.format("what?"), videos=noise["long"], questions="where?")
    assert torch.equal(inputs["question_ids"], plain["question_ids"])
    assert processor.apply_chat_template(chat, questions="where?")
    text = processor.apply_chat_template(
        about("a", "what?"), chat_template="{{ greeting }}, {{ messages | length }}", greeting="Hi"
    )
    assert text == "Hi, 1"


def test_frames_are_chosen_by_what_was_asked_last(tiny_qwen2: Any, noise: Any) -> None:
    """As `ask` does with a history. A conversation that ends in an answer is one to learn from."""
    model, processor = tiny_qwen2
    chat = [
        *about(noise["long"], "\nWho is it?"),
        {"role": "assistant", "content": "A rabbit."},
        {"role": "user", "content": "Where is it?"},
    ]
    inputs = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    words = QuestionTokenizer()
    assert inputs["question_ids"][0].tolist() == words("Where is it?").tolist()
    ids = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    answer = bvllm.open_video(model, noise["long"], processor=processor).ask(
        "Where is it?", history=[("Who is it?", "A rabbit.")], **GREEDY
    )
    assert answer.text == processor.decode(ids[0], skip_special_tokens=True).strip()
    learned = processor.apply_chat_template(
        [*chat, {"role": "assistant", "content": "Here."}], tokenize=True
    )
    assert learned["question_ids"][0].tolist() == words("Who is it?").tolist()


@pytest.mark.parametrize(
    "metadata",
    [
        {"fps": 10.0, "frames_indices": [0, 5, 20, 25, 30, 40, 50, 60, 70, 80, 99]},
        VideoMetadata(
            total_num_frames=100, fps=10.0,
            frames_indices=[0, 5, 20, 25, 30, 40, 50, 60, 70, 80, 99],
        ),
    ],
    ids=["mapping", "object"],
)  # fmt: skip
def test_metadata_says_when_frames_are(processor: Any, noise: Any, metadata: Any) -> None:
    given: dict[str, Any] = {"video_metadata": [metadata]}
    times = [0, 0.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9.9]
    assert seconds(processor, noise["long"], **given) == pytest.approx(times)
    nested = {"videos_kwargs": {"video_metadata": [[metadata]]}}
    assert seconds(processor, noise["long"], **nested) == pytest.approx(times)
    assert seconds(processor, noise["long"], num_frames=3, **given) == pytest.approx([0, 4, 9.9])
    sampled = seconds(processor, noise["long"], fps=0.5, **given)
    assert sampled == pytest.approx([0, 2, 4, 6, 8])
    by_rate = seconds(processor, noise["long"], video_metadata={"fps": 4.0})
    assert by_rate == [i / 4 for i in range(11)]


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"num_frames": 0}, ValueError, "num_frames: got 0"),
        ({"num_frames": 2.5}, TypeError, "num_frames: got 2.5"),
        ({"num_frames": 3, "fps": 2.0}, ValueError, "num_frames: got 3 beside fps=2.0"),
        ({"do_sample_frames": False, "fps": 2.0}, ValueError, "do_sample_frames: got False beside"),
        ({"do_sample_frames": False, "num_frames": 2}, ValueError, "beside num_frames=2"),
        ({"fps": 0.0}, ValueError, "fps: got 0.0"),
        ({"fps": "2"}, TypeError, "fps: got '2'"),
        ({"max_frames": 3}, TypeError, "max_frames: got 3, which this processor has no use for"),
        ({"videos_kwargs": {"size": 3}}, TypeError, "size: got 3"),
        ({"videos_kwargs": 3}, TypeError, "videos_kwargs: got int"),
        ({"videos_kwargs": {"fps": 1.0}, "fps": 2.0}, ValueError, "fps: got 1.0 and 2.0"),
        ({"return_tensors": "np"}, ValueError, "return_tensors: got 'np', wanted 'pt'"),
        ({"video_metadata": [{"fps": 0}]}, ValueError, "video_metadata: got fps=0, wanted"),
        ({"video_metadata": [{}]}, ValueError, "video_metadata: got fps=None, wanted"),
        ({"video_metadata": [{}, {}]}, ValueError, "video_metadata: got 2, wanted 1"),
        (
            {"video_metadata": [{"fps": 1, "frames_indices": [0, 1]}]},
            ValueError,
            r"video_metadata: got frames_indices=\[0, 1\], wanted 11 that increase",
        ),
    ],
    ids=str,
)
def test_wrong_options_are_named(
    processor: Any, noise: Any, options: Any, kind: Any, told: str
) -> None:
    with pytest.raises(kind, match=told):
        seconds(processor, noise["long"], **options)


def test_a_file_says_itself_when_its_frames_are(processor: Any) -> None:
    with pytest.raises(ValueError, match=r"video_metadata: got some of .*needles.mp4"):
        seconds(processor, DEMO_VIDEO, video_metadata=[{"fps": 1.0}])


def test_times_are_not_rounded_with_the_pixels(processor: Any) -> None:
    every = processor(text=CHAT.format("what?"), videos=[DEMO_VIDEO], do_sample_frames=False)
    times = every["seconds"].clone()
    half = every.to("cpu", torch.bfloat16)
    assert half["pixel_values"].dtype == torch.bfloat16
    assert torch.equal(half["seconds"], times) and len(set(times.tolist())) == len(times) > 500


# --- frames in every form -------------------------------------------------------------------------


def test_videos_and_images_come_as_tensors_arrays_and_lists(processor: Any, noise: Any) -> None:
    video, image = noise["short"], noise["image"]
    first = np.moveaxis(video, -1, 1)
    text = CHAT.format("what?")
    want = processor(text=text, videos=[video])
    for form in (
        torch.from_numpy(video), torch.from_numpy(first.copy()), first,
        [Image.fromarray(frame) for frame in video], [*video], [*torch.from_numpy(first.copy())],
    ):  # fmt: skip
        for given in ([form], [[form]]):
            got = processor(text=text, videos=given)
            assert all(torch.equal(got[name], want[name]) for name in want)
    both = processor(text=[text, text], videos=torch.from_numpy(np.stack([first, first])))
    assert both["frame_counts"].tolist() == [3, 3]
    got = processor.apply_chat_template(
        about(torch.from_numpy(first.copy()), "what?"), tokenize=True
    )
    assert torch.equal(got["pixel_values"], want["pixel_values"])

    asked = text.replace("<video>", "<image>")
    want = processor(text=asked, images=[image])
    for form in (torch.from_numpy(image), np.moveaxis(image, -1, 0), Image.fromarray(image)):
        got = processor(text=asked, images=[form])
        assert all(torch.equal(got[name], want[name]) for name in want)
    with pytest.raises(ValueError, match=r"got a torch.float32 tensor, wanted uint8"):
        processor(text=text, videos=[torch.from_numpy(first / 255.0).float()])


def test_nothing_is_downloaded(processor: Any, tmp_path: Path) -> None:
    for part in ({"url": "https://example.org/a.mp4"}, {"video": "http://example.org/a.mp4"}):
        chat = [message({"type": "video", **part})]
        with pytest.raises(ValueError, match=r"content: got a video at http.*, wanted a file"):
            processor.apply_chat_template(chat, tokenize=True)


def test_a_placeholder_need_be_no_word(tiny_qwen2: Any, noise: Any) -> None:
    """Penalties look up the words of the prompt."""
    model, processor = tiny_qwen2
    inputs = processor(text=CHAT.format("what?"), videos=noise["long"])
    penalty: dict[str, Any] = {"repetition_penalty": 1.5, "max_new_tokens": 5}
    model.generate(**inputs, **penalty)
    beyond = model.config.text_config.vocab_size + 3
    ids = inputs["input_ids"]
    inputs["input_ids"] = ids.masked_fill(ids == processor.video_token_id, beyond)
    model.config.video_token_id = beyond
    try:
        out = model.generate(**inputs, **penalty)
    finally:
        model.config.video_token_id = processor.video_token_id
    assert torch.equal(out[:, : ids.shape[1]], inputs["input_ids"])
