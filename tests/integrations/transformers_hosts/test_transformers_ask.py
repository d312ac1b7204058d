"""From a clip to an answer: our reader's frames through four real processors, under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import write_video
from PIL import Image
from processors import PROCESSORS, messages, model, prepare, processor, write
from tiny import family
from tiny_scouts import tiny_clip

import bvllm_adapters as bvllm
from bvllm_adapters.features import FrameFeatures

QUESTION = "What happens?"
QWEN = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=100)  # 10 s


@pytest.fixture(params=PROCESSORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def wrapped(name: str, **settings: Any) -> tuple[Any, Any]:
    """A tiny model of this family under a budget, with its processor."""
    return bvllm.wrap(model(name), **settings), processor(name)


def ask(made: tuple[Any, Any], video: Any, question: str = QUESTION, **settings: Any) -> Any:
    settings = {"fps": 4, "max_new_tokens": 6, **settings}
    return bvllm.ask(made[0], video, question, processor=made[1], **settings)


def users_own(name: str, video: bvllm.Video) -> str:
    """What the unmodified model says of all frames, at their times, by the user's own snippet."""
    milliseconds = (video.seconds * 1000).round().astype(int)
    if name in QWEN:  # both frames of a pair are given the mean of their times, as `ask` does
        milliseconds = milliseconds.reshape(-1, 2).mean(axis=1).round().astype(int).repeat(2)
    times = {
        "total_num_frames": int(milliseconds[-1]) + 1,
        "fps": 1000,
        "duration": (int(milliseconds[-1]) + 1) / 1000,
        "width": video.frames.shape[2],
        "height": video.frames.shape[1],
        "frames_indices": milliseconds.tolist(),
    }
    its_processor = processor(name)
    inputs = prepare(
        its_processor,
        messages(video.frames, QUESTION),
        do_sample_frames=False,
        video_metadata=[[times]],
    )
    out = model(name).generate(**inputs, max_new_tokens=6, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    return str(its_processor.batch_decode(new, skip_special_tokens=True)[0]).strip()


def test_a_scout_may_read_another_question(name: str, clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    selector = bvllm.RelevanceSelector.from_pretrained(tiny_clip(tmp_path / "scout"))
    made = wrapped(name, max_tokens=24, selector=selector)
    query, other = "a man in red", "a dog on the wall"

    def scores(asked: Any) -> list[float]:
        return [frame.score for frame in asked.trace.frames]

    said = ask(made, clip, "Who?", query=query)
    video = bvllm.open_video(made[0], clip, processor=made[1], fps=4)
    assert scores(video.ask("Who?", query=query, max_new_tokens=6)) == scores(said)
    assert scores(said) != scores(ask(made, clip, "Who?"))
    # What the model itself is asked stays the question.
    assert scores(ask(made, clip, query)) == scores(said)
    both = video.ask(["Who?", "Who?"], query=[query, other], max_new_tokens=6)
    assert scores(both[0]) == scores(said) != scores(both[1])
    items = [(video, "Who?")] * 3
    three = bvllm.ask_batch(items, batch_size=2, query=[query, None, other], max_new_tokens=6)
    assert [scores(one) for one in three] == [
        scores(said), scores(ask(made, clip, "Who?")), scores(both[1])
    ]  # fmt: skip
    with pytest.raises(ValueError, match="query: got 2, wanted 3"):
        bvllm.ask_batch(items, query=[query, other])
    with pytest.raises(TypeError, match="query: got int, wanted a string"):
        ask(made, tmp_path / "not read", query=3)
    with pytest.raises(ValueError, match="query: got 'a man in red', wanted None, as a Coverage"):
        ask(wrapped(name, max_tokens=24), tmp_path / "not read", query=query)


def test_a_budget_that_keeps_everything_is_the_users_own_way(name: str, clip: Path) -> None:
    video = bvllm.read_video(clip, fps=4)
    assert ask(wrapped(name), video).text == users_own(name, video)
    assert ask(wrapped(name, max_tokens=10**6), clip).text == users_own(name, video)


@pytest.mark.parametrize("max_tokens", [1, 7, 24, 61])
def test_the_budget_is_met_to_the_token(name: str, clip: Path, max_tokens: int) -> None:
    answer = ask(wrapped(name, max_tokens=max_tokens), clip)
    trace = answer.trace
    assert answer.text is not None
    assert trace.num_tokens == trace.max_tokens == max_tokens
    assert trace.selector == "coverage"
    assert trace.tower_passes == len(trace.frames) < trace.frames_decoded
    assert trace.scout_passes == trace.frames_decoded == (20 if name in QWEN else 40)
    assert [frame.frame for frame in trace.frames] == sorted({f.frame for f in trace.frames})
    assert all(frame.score is not None and 0 <= frame.score <= 1 for frame in trace.frames)
    assert "by coverage" in str(trace)


def test_what_the_prompt_holds(name: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wrapped(name, max_tokens=24)
    seen: dict[str, Any] = {}
    generate = type(made[0]).generate

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(made[0]), "generate", watched)
    ask(made, clip, history=[("Who is it?", "A bunny.")], system="Be brief.")
    text = made[1].tokenizer.decode(seen["input_ids"][0])
    order = ["Be brief.", "Who is it?", "A bunny.", QUESTION]
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    config = made[0].config
    token = config.image_token_id if name == "internvl" else config.video_token_id
    assert int((seen["input_ids"] == token).sum()) == 24
    assert not any("pixel" in key for key in seen)


def test_later_questions_look_at_nothing_again(name: str, clip: Path) -> None:
    made = wrapped(name, max_tokens=24)
    video = bvllm.open_video(made[0], clip, processor=made[1], fps=4)
    first = video.ask(QUESTION, max_new_tokens=6)
    passes = video.tower_passes
    again, other = video.ask([QUESTION, "And then?"], max_new_tokens=6)
    assert again.text == first.text == ask(made, clip).text
    assert video.tower_passes == passes
    assert other.text == video.ask("And then?", max_new_tokens=6).text
    batch = bvllm.ask_batch([(video, "And then?"), (video, QUESTION)], max_new_tokens=6)
    assert [answer.text for answer in batch] == [other.text, first.text]


@pytest.mark.parametrize("frames", [40, 39, 1])
def test_pushed_frames_are_seen_as_a_whole_video(name: str, clip: Path, frames: int) -> None:
    """Odd numbers too, of models that take pairs: the last frame stands for the one missing."""
    video = bvllm.read_video(clip, fps=4)
    shown = video.frames[:frames]
    made = wrapped(name, max_tokens=24)
    whole = bvllm.open_video(made[0], shown, processor=made[1], fps=4)
    stream = bvllm.open_video(made[0], processor=made[1], fps=4)  # as the array is
    for begin in range(0, frames, 3):
        stream.push(shown[begin : begin + 3])
        if begin == 6:
            stream.ask(QUESTION, max_new_tokens=2)  # changes nothing of what comes later
    assert len(stream) == -(-frames // (2 if name in QWEN else 1))
    one, other = stream.features, whole.features
    assert torch.equal(one.cls, other.cls)
    answers = [video.ask(QUESTION, max_new_tokens=6) for video in (stream, whole)]
    if frames > 1:  # a single frame of an array is an image
        assert answers[0].text == answers[1].text
    assert answers[0].trace.num_tokens == min(24, one.patches_per_frame * len(stream) + one.beside)


def test_saved_features_answer_alike(name: str, clip: Path, tmp_path: Path) -> None:
    made = wrapped(name, max_tokens=24)
    video = bvllm.open_video(made[0], clip, processor=made[1], fps=4)
    answer = video.ask(QUESTION, max_new_tokens=6)
    video.save(tmp_path / "seen.safetensors")
    loaded = bvllm.load_video(made[0], tmp_path / "seen.safetensors", processor=made[1])
    assert loaded.ask(QUESTION, max_new_tokens=6).text == answer.text


def test_from_a_folder_with_the_budget_and_back(name: str, clip: Path, tmp_path: Path) -> None:
    loaded = bvllm.wrap(bvllm.load(write(name, tmp_path / "host")), max_tokens=24)
    answer = bvllm.ask(loaded, clip, QUESTION, fps=4, max_new_tokens=6)
    assert answer.text == ask(wrapped(name, max_tokens=24), clip).text
    loaded.save_pretrained(tmp_path / "saved")
    again = bvllm.load(tmp_path / "saved")
    assert again.balanced_tokenizer.config == loaded.balanced_tokenizer.config
    assert bvllm.ask(again, clip, QUESTION, fps=4, max_new_tokens=6).text == answer.text


def test_an_image_is_the_users_own(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture, its_processor = Image.fromarray(pixels), processor(name)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    inputs = prepare(its_processor, [{"role": "user", "content": content}])

    def plain() -> Any:
        made = model(name)
        return made

    out = plain().generate(**inputs, max_new_tokens=6, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    wanted = its_processor.batch_decode(new, skip_special_tokens=True)[0].strip()
    kept = bvllm.wrap(plain(), max_tokens=1000), its_processor
    assert ask(kept, picture).text == wanted
    few = bvllm.wrap(plain(), max_tokens=3), its_processor
    assert ask(few, picture).trace.num_tokens == 3


@pytest.mark.parametrize("name", QWEN, indirect=True)
def test_pictures_are_as_large_as_the_budget_has_room_for(name: str) -> None:
    """The tower does not see what would be merged away."""
    frames = np.random.default_rng(0).integers(0, 256, (80, 96, 128, 3), dtype=np.uint8)

    def features(max_tokens: int | None) -> FrameFeatures:
        made = wrapped(name, max_tokens=max_tokens)
        video = bvllm.open_video(made[0], frames, processor=made[1])
        assert video.ask(QUESTION, max_new_tokens=2).trace.max_tokens == max_tokens
        return video.features

    own, few = features(None), features(64)
    assert own.patches_per_frame is not None and few.patches_per_frame is not None
    assert few.patches_per_frame < own.patches_per_frame or own.patches_per_frame <= 20
    one = torch.tensor([3])
    assert callable(few.patches)
    assert few.patches(one).shape[1] == few.patches_per_frame


def test_settings_of_generate(name: str, clip: Path) -> None:
    made = wrapped(name, max_tokens=24)
    told: list[torch.Tensor] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            told.append(value)

        def end(self) -> None:
            told.append(torch.tensor([]))

    answer = ask(made, clip, streamer=Streamer())
    assert answer.text == ask(made, clip).text
    assert [len(value) for value in told] == [1] * 6 + [0]  # ids of the answer alone
    seen: list[tuple[int, ...]] = []

    def criterion(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return torch.zeros(len(ids), dtype=torch.bool)

    several = ask(made, clip, num_beams=2, num_return_sequences=2, stopping_criteria=[criterion])
    assert len(several.texts) == 2
    assert seen[0][1] == 1


def test_a_processor_without_chat_template_is_said(name: str, clip: Path) -> None:
    made = wrapped(name, max_tokens=24)
    made[1].chat_template = None
    with pytest.raises(ValueError, match="processor: got one without chat_template, wanted that"):
        ask(made, clip)


@pytest.mark.parametrize("odd", ["gemma4", "molmo2", "video_llama_3", "ernie4_5_vl_moe"])
def test_models_whose_videos_are_not_read_here_say_what_to_do(odd: str, clip: Path) -> None:
    made = bvllm.wrap(family(odd).model(), max_tokens=9)
    wanted = r"whose videos bvllm does not read by itself yet, wanted model\.generate"
    with pytest.raises(bvllm.HostError, match=wanted):
        bvllm.ask(made, clip, QUESTION, processor=processor("qwen3_vl"))


def test_a_processor_of_images_alone_is_said(clip: Path) -> None:
    made = bvllm.wrap(family("gemma3").model(), max_tokens=9)
    images = processor("internvl")
    images.video_processor = None
    with pytest.raises(bvllm.HostError, match="without video_processor, wanted one that takes"):
        bvllm.ask(made, clip, QUESTION, processor=images)


def test_from_the_shell(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bvllm_adapters.cli.main import main

    folder = str(write("qwen2_5_vl", tmp_path / "model"))
    asked = ["ask", str(clip), QUESTION, "--model", folder, "--max-tokens", "24", "--fps", "4"]
    shell = [*asked, "--max-new-tokens", "6", "--device", "cpu"]
    assert main(shell) == 0
    told = capsys.readouterr().out
    assert "24 visual tokens of a budget of 24" in told and "chosen by coverage" in told
    assert main([*shell, "--selector", "uniform"]) == 0
    assert "chosen by uniform" in capsys.readouterr().out
    scout = str(tiny_clip(tmp_path / "scout"))
    assert main([*shell, "--scout", scout]) == 0
    told = capsys.readouterr().out
    assert "chosen by relevance" in told
    assert main([*shell, "--scout", scout, "--query", QUESTION]) == 0
    assert capsys.readouterr().out.split("seconds")[0] == told.split("seconds")[0]
    assert main([*shell, "--query", QUESTION]) == 1
    assert "query: got 'What happens?', wanted None" in capsys.readouterr().err


def test_a_video_is_opened_again_for_another_budget_of_the_model(name: str, clip: Path) -> None:
    """By which its pictures were scaled; a question's own budget needs no other pictures."""
    made, its_processor = wrapped(name, max_tokens=24)
    video = bvllm.open_video(made, clip, processor=its_processor, fps=4)
    assert video.ask(QUESTION, max_tokens=5, max_new_tokens=2).trace.num_tokens == 5
    bvllm.wrap(bvllm.unwrap(made), max_tokens=12)
    with pytest.raises(ValueError, match=r"model: got budget \[12, None, None\], wanted \[24,"):
        video.ask(QUESTION, max_new_tokens=2)
