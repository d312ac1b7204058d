"""Settings of generate(), earlier turns and modes: what a caller says is carried through, on every
host, or refused by name."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import TINY_HOSTS, llama_vid, native, wrap_small
from torch import nn
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

import bvllm_adapters as bvllm
from bvllm_adapters.context import asking
from bvllm_adapters.hosts.evaluating import evaluating
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.generation import NEW_TOKENS, REFUSED
from bvllm_adapters.question import without

BUNNY = Path(__file__).parents[1] / "examples" / "big_buck_bunny.mp4"
QUESTION = "What is behind the tree?"
HISTORY = [("Who is it?", "A rabbit."), ("Is it large?", "Yes, it is.")]
BEAMS: dict[str, Any] = {
    "max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2, "eos_token_id": -1,
}  # fmt: skip
FULL: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}


@pytest.fixture(scope="module", params=TINY_HOSTS)
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    model, processor = request.param(tmp_path_factory.mktemp("host"))
    return wrap_small(model), processor


@pytest.fixture(scope="module")
def opened(host: tuple[Any, Any]) -> bvllm.OpenVideo:
    return bvllm.open_video(host[0], BUNNY, processor=host[1])


def new(video: bvllm.OpenVideo, **settings: Any) -> int:
    """How many ids an answer has that nothing ends early."""
    config = settings.get("generation_config")
    if config is None:
        settings["eos_token_id"] = -1
    else:
        config.eos_token_id = -1
    answer = video.ask(QUESTION, return_dict_in_generate=True, **settings)
    return int(answer.generated.sequences.shape[1])


# --- several answers ------------------------------------------------------------------------------


def test_all_sequences_are_told_in_every_way_of_asking(host, opened) -> None:
    model, processor = host
    one = bvllm.ask(model, BUNNY, QUESTION, processor=processor, **BEAMS)
    assert len(one.texts) == 2 and one.text == one.texts[0] != one.texts[1]
    assert opened.ask(QUESTION, **BEAMS).texts == one.texts
    other = opened.ask("Who?", **BEAMS)
    assert other.texts != one.texts
    answers = opened.ask([QUESTION, "Who?"], **BEAMS)
    assert [answer.texts for answer in answers] == [one.texts, other.texts]
    batch = bvllm.ask_batch([(opened, "Who?"), (opened, QUESTION)], **BEAMS)
    assert [answer.texts for answer in batch] == [other.texts, one.texts]
    assert opened.ask(QUESTION, max_new_tokens=4).texts == (
        opened.ask(QUESTION, max_new_tokens=4).text,
    )


def test_scores_that_are_wanted_come_back(opened) -> None:
    settings = {"max_new_tokens": 2, "eos_token_id": -1}
    answers = opened.ask(
        [QUESTION, "Who?"], output_scores=True, output_hidden_states=True, **settings
    )
    for answer in answers:
        assert len(answer.generated.scores) == len(answer.generated.hidden_states) == 2
        assert all(len(layer) == 1 for layer in answer.generated.hidden_states[1])
    config = GenerationConfig(output_logits=True, return_dict_in_generate=True, **settings)
    assert len(opened.ask(QUESTION, generation_config=config).generated.logits) == 2


def test_several_are_sampled(opened) -> None:
    torch.manual_seed(0)
    answer = opened.ask(
        QUESTION, max_new_tokens=6, do_sample=True, num_return_sequences=5, temperature=20.0
    )
    assert len(answer.texts) == 5 and len(set(answer.texts)) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_of_a_batch_are_those_alone(opened, beams) -> None:
    settings = {"max_new_tokens": 4, "eos_token_id": -1, "num_beams": beams, **FULL}
    alone = [opened.ask(question, **settings) for question in (QUESTION, "Who?")]
    for one, other in zip(alone, opened.ask([QUESTION, "Who?"], **settings), strict=True):
        assert torch.equal(one.generated.sequences, other.generated.sequences)
        assert len(other.generated.scores) == 4
        for left, right in zip(one.generated.scores, other.generated.scores, strict=True):
            assert len(left) == len(right) == beams
            torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
        if beams > 1:
            assert torch.equal(one.generated.beam_indices, other.generated.beam_indices)
            torch.testing.assert_close(
                one.generated.sequences_scores, other.generated.sequences_scores
            )
        transitions = opened.model.compute_transition_scores(
            other.generated.sequences, other.generated.scores,
            getattr(other.generated, "beam_indices", None),
        )  # fmt: skip
        assert transitions.shape == (1, 4)
    assert opened.ask(QUESTION, max_new_tokens=4).generated is None


# --- whose settings count -------------------------------------------------------------------------


def test_a_length_comes_from_the_call_the_config_or_the_default(opened, monkeypatch) -> None:
    assert new(opened) == NEW_TOKENS == 128
    assert new(opened, max_new_tokens=3) == 3
    assert new(opened, generation_config=GenerationConfig(max_new_tokens=4)) == 4
    assert new(opened, generation_config=GenerationConfig(max_new_tokens=4), max_new_tokens=2) == 2
    monkeypatch.setattr(opened.model.generation_config, "max_new_tokens", 5)
    assert new(opened) == 5
    assert new(opened, max_new_tokens=3) == 3
    monkeypatch.setattr(opened.model.generation_config, "max_length", 6)  # as old files have it
    assert new(opened, max_new_tokens=3) == 3


def test_a_config_is_not_changed(opened) -> None:
    given = GenerationConfig(max_new_tokens=2)
    before = given.to_dict()
    opened.ask(QUESTION, generation_config=given, do_sample=False)
    assert given.to_dict() == before


def test_max_length_counts_the_prompt_too(opened) -> None:
    with pytest.raises(ValueError, match=r"max_length: got 5, wanted more than the \d+") as told:
        opened.ask(QUESTION, max_length=5)
    prompt = int(str(told.value).split("the ")[1].split()[0])
    assert new(opened, max_length=prompt + 3) == 3
    assert new(opened, generation_config=GenerationConfig(max_length=prompt + 2)) == 2
    assert new(opened, generation_config=GenerationConfig(max_length=10**6), max_new_tokens=3) == 3
    short = opened.ask(
        QUESTION, min_length=prompt + 4, max_new_tokens=6, return_dict_in_generate=True
    )
    assert short.generated.sequences.shape[1] >= 4


def test_sampling_by_a_config_is_sampling_by_keywords(opened) -> None:
    settings: dict[str, Any] = {"do_sample": True, "temperature": 20.0, "max_new_tokens": 6}
    answers = []
    for said in (settings, {"generation_config": GenerationConfig(**settings)}):
        torch.manual_seed(1)
        answers.append(opened.ask(QUESTION, **said).text)
    greedy = opened.ask(QUESTION, max_new_tokens=6, do_sample=False).text
    assert answers[0] == answers[1] != greedy
    still = opened.ask(
        QUESTION, generation_config=GenerationConfig(**settings), do_sample=False, temperature=None
    )
    assert still.text == greedy


class Streamed(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_one_answer(opened) -> None:
    streamer = Streamed()
    answer = opened.ask(QUESTION, max_new_tokens=4, streamer=streamer, return_dict_in_generate=True)
    assert streamer.ids == answer.generated.sequences[0].tolist() and streamer.ended
    for settings, told in (
        ({"num_beams": 2}, "num_beams of 2"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences of 2"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams of 2"),
    ):
        with pytest.raises(ValueError, match=f"streamer: got {told}, wanted 1"):
            opened.ask(QUESTION, streamer=streamer, **settings)
    with pytest.raises(ValueError, match="streamer: got questions of 2, wanted 1"):
        opened.ask([QUESTION, "?"], streamer=streamer)


def test_stopping_criteria_and_allowed_tokens_work(opened) -> None:
    def after_two(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 2)

    assert new(opened, stopping_criteria=[after_two]) == 2
    allowed = opened.ask(
        QUESTION, max_new_tokens=3, prefix_allowed_tokens_fn=lambda prompt, ids: [7],
        return_dict_in_generate=True,
    )  # fmt: skip
    assert set(allowed.generated.sequences[0].tolist()) == {7}


def test_stop_strings_need_a_tokenizer_of_transformers(host, opened) -> None:
    tokenizer = getattr(host[1], "tokenizer", None)
    if not hasattr(tokenizer, "get_vocab"):
        with pytest.raises(ValueError, match="stop_strings: got 'a', and this host's tokenizer"):
            opened.ask(QUESTION, stop_strings="a")
        return
    whole = opened.ask(QUESTION, max_new_tokens=12).text
    part = whole.split()[2]
    cut = opened.ask(QUESTION, max_new_tokens=12, stop_strings=[part]).text
    assert part in cut and len(cut) < len(whole)


# --- what is refused, before a video is read ------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({"max_new_token": 3}, TypeError, "max_new_token: got 3, .*perhaps max_new_tokens"),
        ({"anything": 3}, TypeError, "anything: got 3, and no setting has this name"),
        ({"pixel_values": torch.zeros(1)}, TypeError, "pixel_values: got tensor"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: got 0, wanted an int >= 1"),
        ({"max_new_tokens": -3}, ValueError, "max_new_tokens: got -3"),
        ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens: got 2.5"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens: got True"),
        ({"num_beams": 0}, ValueError, "num_beams: got 0"),
        ({"num_return_sequences": 0}, ValueError, "num_return_sequences: got 0"),
        ({"max_length": 9, "max_new_tokens": 2}, ValueError, "max_length: got it beside"),
        ({"max_tokens": 0}, ValueError, "max_tokens: got 0"),
        ({"logits_processor": print}, TypeError, "logits_processor: got builtin"),
        ({"stopping_criteria": print}, TypeError, "stopping_criteria: got builtin"),
        ({"generation_config": {"num_beams": 2}}, TypeError, "generation_config: got dict"),
        (
            {"generation_config": GenerationConfig(guidance_scale=2.0)},
            ValueError,
            "guidance_scale: got 2.0, which cannot be",
        ),
        ({"history": "Who?"}, TypeError, "history: got str, wanted"),
        ({"history": [{"role": "user", "content": "?"}]}, TypeError, r"history\[0\]: got {'role'"),
        ({"history": [("Who?", None)]}, TypeError, r"history\[0\]: got \('Who\?', None\)"),
        ({"system": 3}, TypeError, "system: got int, wanted a text"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_named_before_the_video_is_read(host, opened, settings, kind, told):
    model, processor = host
    with pytest.raises(kind, match=told):
        bvllm.ask(model, "not there.mp4", QUESTION, processor=processor, **settings)
    with pytest.raises(kind, match=told):
        opened.ask([QUESTION, "?"], **settings)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_follow_visual_tokens_is_named(host, name) -> None:
    model, processor = host
    with pytest.raises(ValueError, match=f"{name}: got 2, which cannot be, as .* wanted it"):
        bvllm.ask(model, "not there.mp4", QUESTION, processor=processor, **{name: 2})


# --- earlier turns --------------------------------------------------------------------------------


def test_history_is_the_hosts_own_conversation(host, opened) -> None:
    """The answer is that of the model itself to the whole conversation as its format has it."""
    model, processor = host
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    video = bvllm.read_video(BUNNY)
    said = opened.ask(QUESTION, history=HISTORY, **settings)
    name = type(model).__name__
    served_by = host_of(model)
    with asking(QUESTION):
        if name.startswith("Bvllm"):
            text = processor.apply_chat_template(
                [
                    {"role": "user", "content": f"<video>\n{HISTORY[0][0]}"},
                    {"role": "assistant", "content": HISTORY[0][1]},
                    {"role": "user", "content": HISTORY[1][0]},
                    {"role": "assistant", "content": HISTORY[1][1]},
                    {"role": "user", "content": QUESTION},
                ],
                add_generation_prompt=True,
            )
            inputs = processor(text=text, videos=[video], questions=QUESTION)
            length = inputs["input_ids"].shape[1]
            ids = model.generate(**inputs, **settings)[:, length:]
            expected = processor.batch_decode(ids, skip_special_tokens=True)[0]
        elif name.startswith("Videollama2"):
            text = processor.tokenizer.apply_chat_template(
                [
                    {"role": "user", "content": f"<video>\n{HISTORY[0][0]}"},
                    {"role": "assistant", "content": HISTORY[0][1]},
                    {"role": "user", "content": HISTORY[1][0]},
                    {"role": "assistant", "content": HISTORY[1][1]},
                    {"role": "user", "content": QUESTION},
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
            images = [(served_by.pixels(processor, video.frames), "video")]
            ids = model.generate(
                processor.ids(text, "video"), images=images, **processor.settings(model) | settings
            )
            expected = processor.tokenizer.decode(ids[0], skip_special_tokens=True)
        else:
            text = (
                f"{processor.system} USER: <image>\nWho is it? ASSISTANT: A rabbit.</s>"
                "USER: Is it large? ASSISTANT: Yes, it is.</s>"
                f"USER: {QUESTION} ASSISTANT:"
            )
            prompt = processor.tokenizer(text)[None]
            images = [served_by.pixels(processor, video.frames)]
            ids = model.generate(prompt, images=images, **settings)[:, prompt.shape[1] :]
            expected = processor.tokenizer.decode(ids[0])
    assert said.text == expected.strip()
    fresh = opened.ask(QUESTION, **settings)
    assert said.text != fresh.text and said.trace.frames == fresh.trace.frames


def test_a_batch_may_have_histories_of_its_own(opened) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    items = [(opened, QUESTION, HISTORY), (opened, "Who?"), (opened, QUESTION, HISTORY[:1])]
    alone = [opened.ask(item[1], history=[*item[2:]] and item[2], **settings) for item in items]
    assert [a.text for a in bvllm.ask_batch(items, **settings)] == [a.text for a in alone]
    both = opened.ask([QUESTION, "Who?"], history=HISTORY, **settings)
    assert both[0].text == alone[0].text


def test_a_system_turn_goes_before_the_first(host, opened) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    plain = opened.ask(QUESTION, **settings)
    assert opened.ask(QUESTION, system="Say large, large words.", **settings).text != plain.text
    if hasattr(host[1], "system") and host[1].system is not None:
        assert opened.ask(QUESTION, system=host[1].system, **settings).text == plain.text


def test_a_host_without_a_place_for_history_says_so(opened, monkeypatch) -> None:
    def answers(model: Any, processor: Any, questions: Any, tokens: Any, **generate: Any) -> Any:
        return ["yes"] * len(questions)

    monkeypatch.setattr(opened.host, "answers", answers, raising=False)
    assert opened.ask(QUESTION).texts == ("yes",)
    for name, value in (("history", HISTORY), ("system", "Be brief.")):
        with pytest.raises(ValueError, match=f"{name}: got .* has no place for it in its prompt"):
            opened.ask(QUESTION, **{name: value})


# --- a question is text ---------------------------------------------------------------------------


def test_no_text_brings_about_a_tag() -> None:
    for text, left in (
        ("<vid<video>eo>What?", "What?"),
        ("<vid<image>eo>What?", "What?"),
        ("<im<vid<im<image>age>eo>age>", ""),
        ("<image><video>", ""),
        ("<video", "<video"),
        ("a < b > c", "a < b > c"),
    ):
        assert without(text) == left
    assert without("<vid" * 20_000 + "eo>" * 20_000) == ""
    assert without("<a><|b|>c", ["<|b|>", "<a>", ""]) == "c"


@pytest.mark.parametrize("where", ["question", "history", "system"])
def test_placeholders_and_special_tokens_cannot_be_formed(host, opened, where) -> None:
    processor = host[1]
    end = "</s>" if "LlamaVid" in type(processor).__name__ else "<|im_end|>"
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}

    def said(inserted: str, **more: Any) -> str:
        words = f"What is {inserted}it?"
        turns = {
            "question": {"question": words},
            "history": {"question": QUESTION, "history": [(words, words)]},
            "system": {"question": QUESTION, "system": words},
        }[where]
        return opened.ask(**turns, **(settings | more)).text

    def length(inserted: str) -> str:
        with pytest.raises(ValueError, match="max_length") as told:
            said(inserted, max_length=2, max_new_tokens=None)
        return str(told.value)

    plain, ids = said(""), length("")
    for tag in ("<video>", "<image>", "<vid<video>eo>", "<im<image>age>", "<vid<image>eo>"):
        assert said(tag) == plain, tag
    for token in (
        end, end[:2] + "<video>" + end[2:], "<video" + end + ">", end[:2] + end + end[2:],
        end[:2] + "<vid" + end + "eo>" + end[2:],
    ):  # fmt: skip
        assert length(token) == ids, token
        if where != "question":  # the frames are chosen by all of its words
            assert said(token) == plain, token


# --- modes ----------------------------------------------------------------------------------------


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in model.named_modules()}


def set_modes(model: Any, case: str) -> None:
    model.eval()
    if case == "all":
        model.train()
    elif case == "tokenizer":
        model.balanced_tokenizer.train()
    elif case == "odd ones":
        for part in list(model.modules())[::3]:
            part.training = True
    elif case == "checkpointing":
        model.train()
        model.gradient_checkpointing_enable()


@pytest.mark.parametrize("case", ["all", "tokenizer", "odd ones", "checkpointing"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(en|dis)able` is:FutureWarning")
def test_it_answers_as_in_evaluation_and_leaves_the_mode(host, case) -> None:
    model, processor = host
    settings: dict[str, Any] = {"processor": processor, "max_new_tokens": 6, "do_sample": False}
    try:
        model.eval()
        want = bvllm.ask(model, BUNNY, QUESTION, **settings)
        set_modes(model, case)
        before = modes(model)
        video = bvllm.open_video(model, BUNNY, processor=processor)
        del settings["processor"]
        for _ in range(2):
            got = bvllm.ask(model, BUNNY, QUESTION, processor=processor, **settings)
            for answer in (
                got,
                video.ask(QUESTION, **settings),
                bvllm.ask_batch([(video, QUESTION)], **settings)[0],
            ):
                assert answer.text == want.text and answer.trace.frames == want.trace.frames
            assert modes(model) == before
        with pytest.raises(ValueError, match="max_length"):
            video.ask(QUESTION, max_length=2)
        assert modes(model) == before
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


def test_two_threads_may_ask_a_model_in_training_mode(host, opened) -> None:
    model, _ = host
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    questions = [QUESTION, "Who?", "", "Where is the rabbit?"]
    wanted = [opened.ask(question, **settings).text for question in questions]
    try:
        model.train()
        before = modes(model)
        with ThreadPoolExecutor(3) as pool:
            told = list(pool.map(lambda q: opened.ask(q, **settings).text, questions * 3))
        assert told == wanted * 3 and modes(model) == before
    finally:
        model.eval()


def test_modes_come_back_when_the_last_block_ends() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    model[1][0].eval()
    before = modes(model)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with evaluating(model):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with evaluating(model):
        thread.start()
        assert inside.wait(60)
        assert not any(modes(model).values())
    assert not any(modes(model).values())  # the other one still asks
    leave.set()
    thread.join()
    assert modes(model) == before


def test_a_model_in_evaluation_mode_is_not_touched() -> None:
    model, _ = native(Path())
    with evaluating(model):
        model.balanced_tokenizer.train()
    assert model.balanced_tokenizer.training and not model.training


def test_a_host_of_vicuna_splits_turns_as_upstream_does(tmp_path) -> None:
    _, processor = llama_vid(tmp_path)
    text = processor.prompt("Who?", "A rabbit.", "Where?")
    assert text.endswith("USER: <image>\nWho? ASSISTANT: A rabbit.</s>USER: Where? ASSISTANT:")


def test_lengths_of_the_ports_own_generate_count_ids(host) -> None:
    """The native host's are in test_bvllm_qwen2_conventions.py."""
    model, processor = host
    if type(model).__name__.startswith("Bvllm"):
        return
    pixels = host_of(model).pixels(processor, bvllm.read_video(BUNNY).frames)
    if type(model).__name__.startswith("Videollama2"):
        ids = processor.ids(processor.prompt(QUESTION, "video"), "video")
        call: dict[str, Any] = {"inputs": ids, "images": [(pixels, "video")]}
        before = 0  # it gives new ids only
    else:
        ids = processor.tokenizer(processor.prompt(QUESTION))[None]
        call = {"inputs": ids, "images": [pixels], "prompts": [[QUESTION]]}
        before = ids.shape[1]
    call |= {"do_sample": False, "eos_token_id": -1}
    whole = ids.shape[1] + 3
    with asking(QUESTION):
        assert model.generate(**call, max_length=whole).shape[1] == before + 3
        given = GenerationConfig(max_length=whole)
        assert model.generate(**call, generation_config=given).shape[1] == before + 3
        with pytest.raises(ValueError, match="max_length: got 3, wanted more than the"):
            model.generate(**call, max_length=3)
