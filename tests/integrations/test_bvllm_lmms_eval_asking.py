"""What lmms-eval's plug-in does without lmms-eval: order, batches, stops, likelihoods, scores.

Runs of lmms-eval itself are in test_bvllm_lmms_eval.py.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bvllm_adapters as bvllm
from bvllm_adapters.certify.calls import own_call
from bvllm_adapters.evaluation.likelihood import token_ids
from bvllm_adapters.evaluation.needle import demo_haystack
from bvllm_adapters.hosts.find import find_host, host_of, processor_of
from bvllm_adapters.hosts.host import HostError
from bvllm_lmms_eval import TASKS, answering, local_data, open_answers, vnbench
from bvllm_lmms_eval.answering import Answering
from bvllm_lmms_eval.asked import Asked, Visual, one_video, visual_of
from bvllm_lmms_eval.batches import Request, batches, by_video
from bvllm_lmms_eval.settings import Settings
from bvllm_lmms_eval.spent import Spent
from bvllm_lmms_eval.stops import Stops

ROOT = Path(__file__).parents[2]
NEEDLES = (Visual(str(ROOT / "examples" / "needles.mp4")),)
BUNNY = (Visual(str(ROOT / "examples" / "big_buck_bunny.mp4")),)
QUESTIONS = demo_haystack().questions
HOSTS = (
    "BvllmQwen2ForConditionalGeneration",
    "LlavaLlamaAttForCausalLM",
    "Qwen2_5_VLForConditionalGeneration",
    "Videollama2Qwen2ForCausalLM",
)


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    native: Any = find_host("BvllmQwen2ForConditionalGeneration")
    return native.demo()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is opened, in turn."""
    sources: list[Any] = []

    def open_video(model: Any, source: Any, **settings: Any) -> Any:
        sources.append(source)
        return bvllm.open_video(model, source, **settings)

    monkeypatch.setattr(answering, "open_video", open_video)
    return sources


def request(text: str, visuals: Any = NEEDLES, **settings: Any) -> Request:
    return Request(
        lambda: Asked(visuals, text), visuals, Settings.of({"max_new_tokens": 8, **settings})
    )


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


# Prompts


def test_messages_are_a_conversation() -> None:
    asked = Asked.of_messages(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "video", "url": "a.mp4"}, {"type": "text", "text": "Who?"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A rabbit."}]},
            {"role": "user", "content": "And then?"},
        ]
    )
    assert asked == Asked((Visual("a.mp4"),), "And then?", (("Who?", "A rabbit."),), "Be brief.")


@pytest.mark.parametrize("roles", [[], ["assistant"], ["user", "user"], ["user", "assistant"]])
def test_messages_that_are_none(roles: list[str]) -> None:
    with pytest.raises(ValueError, match=r"messages: got turns of .*, wanted user and assistant"):
        Asked.of_messages([{"role": role, "content": "Who?"} for role in roles])


def test_a_visual_may_be_a_part_of_a_video() -> None:
    part = {"type": "video", "url": {"path": "a.mp4", "video_start": 2.0}, "end_time": 5}
    assert visual_of(part) == Visual("a.mp4", 2.0, 5)
    with pytest.raises(ValueError, match="visuals: got audio"):
        visual_of({"type": "audio", "url": "a.wav"})
    with pytest.raises(ValueError, match=r"visuals: got .*wanted url or path"):
        visual_of({"type": "video"})


def test_pictures_of_one_size_are_a_video() -> None:
    same = [Visual(picture(20, 30, seed)) for seed in range(2)]
    together = one_video(same)
    assert together is not None and together.source == [one.source for one in same]
    assert one_video([*same, Visual(picture(30, 20))]) is None
    assert one_video([*same, *NEEDLES]) is None
    assert one_video([]) is None
    assert one_video(NEEDLES) is NEEDLES[0]


# Settings


def test_settings_are_greedy_unless_told_otherwise() -> None:
    given = {"max_new_tokens": 4, "temperature": 0, "top_p": 0.9, "do_sample": False, "top_k": None}
    assert Settings.of(given).generate == {"max_new_tokens": 4, "do_sample": False}
    assert Settings.of({"temperature": 0.5}).generate == {"temperature": 0.5, "do_sample": True}
    assert Settings.of({"do_sample": True, "temperature": 0}).generate == {"do_sample": False}
    assert Settings.of({"max_gen_toks": 4}).generate["max_new_tokens"] == 4


def test_what_generate_knows_not_is_left_out_and_told_once(demo: Any) -> None:
    told: list[str] = []
    asking = Answering(*demo, tell=told.append, batch_size=1)
    asking.answers([request(one.text, image_aspect_ratio="pad") for one in QUESTIONS[:2]])
    assert len(told) == 1 and "image_aspect_ratio is left out" in told[0]


def test_what_cannot_follow_a_video_is_refused(demo: Any) -> None:
    with pytest.raises(ValueError, match=r"guidance_scale: got 2\.0, which cannot be"):
        Answering(*demo).answers([request("What digit is red?", guidance_scale=2.0)])


def test_an_answer_stops_where_it_is_to(demo: Any) -> None:
    asking, text = Answering(*demo), "Where is the green digit?"
    assert asking.answers([request(text, until=["left", "right"])]) == ["top"]
    assert asking.answers([request(text, until=" left")]) == ["top"]
    assert asking.answers([request(text, max_new_tokens=1, until=[])]) == ["top"]


def test_paragraphs_are_no_stop() -> None:
    settings = Settings.of({"until": ["\n\n", "", "Q:"]})
    assert settings.until == ("Q:",)
    assert settings.cut("One.\n\nTwo. Q: more") == "One.\n\nTwo."


def test_nothing_is_generated_behind_a_stop(demo: Any) -> None:
    tokenizer = demo[1].tokenizer
    rows = tokenizer(["top left", "red 3"], add_special_tokens=False)["input_ids"]
    stops = Stops(tokenizer, ["left"])
    assert stops(torch.tensor(rows), None).tolist() == [True, False]


# Order


def test_requests_of_a_video_are_together_and_batches_share_settings() -> None:
    asked = [
        request("a", NEEDLES),
        request("b", BUNNY),
        request("c", NEEDLES, max_new_tokens=2),
        request("d", NEEDLES),
        request("e", BUNNY),
    ]
    assert list(batches(asked, 2)) == [[0, 3], [2], [1, 4]]
    assert list(batches(asked, 8)) == [[0, 3], [2], [1, 4]]
    assert list(batches(asked, 1)) == [[0], [3], [2], [1], [4]]
    assert list(batches([], 4)) == []


def test_requests_are_known_by_their_video_and_pictures_are_not_loaded_for_it() -> None:
    loaded: list[str] = []

    def of(task: str, number: int, *visuals: Visual) -> Request:
        def resolve() -> Asked:
            loaded.append(f"{task} {number}")
            return Asked(visuals, "Who?")

        return Request(resolve, (task, "test", number))

    made = by_video(
        [
            of("clips", 0, *NEEDLES),
            of("images", 0, Visual(picture(9, 9))),
            of("images", 1, Visual(picture(9, 9))),
            of("clips", 1, *NEEDLES),
            of("clips", 2),
            of("parts", 0, Visual(NEEDLES[0].source, 0.0, 5.0)),
        ]
    )
    keys = [one.key for one in made]
    assert keys[0] == keys[3] == NEEDLES != keys[5]
    assert keys[1:3] == [("images", "test", 0), ("images", "test", 1)]
    assert keys[4] == ("clips", "test", 2)
    assert loaded == ["clips 0", "images 0", "clips 1", "clips 2", "parts 0"]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_each_video_is_opened_once(demo: Any, opened: list[Any], size: int) -> None:
    asked = [request(one.text) for one in QUESTIONS]
    asked[1:1] = [request("What digit is red?", BUNNY)]
    asked.append(request("Where is the 5?", BUNNY))
    asking = Answering(*demo, max_tokens=8, batch_size=size)
    said = asking.answers(asked)
    assert opened == [NEEDLES[0].source, BUNNY[0].source]
    assert [said[0], *said[2:6]] == [one.answer for one in QUESTIONS]
    alone = bvllm.ask(
        demo[0], BUNNY[0].source, "Where is the 5?",
        processor=demo[1], max_tokens=8, max_new_tokens=8,
    )  # fmt: skip
    assert said[6] == alone.text
    assert len(asking.spent.tokens) == 7 and max(asking.spent.tokens) == 8
    told = str(asking.spent)
    assert told.startswith("7 prompts about 2 videos or images, visual tokens of each at most 8, ")
    assert told.endswith("of a budget of 8; over it: 0")


def test_a_prompt_beyond_the_budget_would_be_told(demo: Any) -> None:
    spent = Spent()
    trace = bvllm.ask(*[demo[0], NEEDLES[0].source, "Who?"], processor=demo[1], max_tokens=8).trace
    spent.add(trace)
    assert spent.over == 0
    spent.add(type(trace)(**{**vars(trace), "max_tokens": trace.num_tokens - 1}))
    assert spent.over == 1


# Every host, every kind of prompt


@pytest.fixture(scope="module", params=HOSTS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    host: Any = find_host(request.param)
    folder = tmp_path_factory.mktemp("tiny")
    host.tiny(folder, request.param)
    model = bvllm.load(folder)
    if not hasattr(model, "balanced_tokenizer"):
        try:
            bvllm.wrap(model, max_tokens=12)
        except HostError as why:
            if "needs transformers" not in str(why):
                raise
            pytest.skip(str(why))
    return model, processor_of(model)


@pytest.mark.parametrize(
    "asked",
    [
        Asked(NEEDLES, "Who?"),
        Asked(NEEDLES, "Who?", (("What?", "A word."),), "Be kind."),
        Asked((), "Who?"),
        Asked((Visual(picture(40, 50)),), "Who?"),
        Asked((Visual(picture(40, 50)), Visual(picture(40, 50, 1))), "Who?"),
    ],
    ids=["video", "conversation", "text", "image", "frames"],
)
def test_every_host_answers(tiny: Any, asked: Asked) -> None:
    asking = Answering(*tiny, max_tokens=12, batch_size=2, tell=lambda message: None)
    one = Request(lambda: asked, "it", Settings.of({"max_new_tokens": 3}), "yes it")
    two = Request(lambda: asked, "it", Settings.of({"max_new_tokens": 3}), "no")
    assert [isinstance(text, str) for text in asking.answers([one, one])] == [True, True]
    together, alone = asking.likelihoods([one, two]), asking.likelihoods([two])
    assert together[1].total == pytest.approx(alone[0].total, abs=1e-3)
    assert together[0].total < 0 and together[0].tokens >= 2
    assert asking.spent.over == 0 and max(asking.spent.tokens, default=0) <= 12


def test_several_images_are_asked_about_where_a_host_can(tiny: Any) -> None:
    several = Asked((Visual(picture(40, 50)), Visual(picture(60, 30))), "Who?")
    asking = Answering(*tiny, max_tokens=12)
    one = Request(lambda: several, "it", Settings.of({"max_new_tokens": 3}))
    if type(host_of(tiny[0])).__name__ == "TransformersHost":
        assert isinstance(asking.answers([one])[0], str) and asking.spent.apart == 1
    else:
        with pytest.raises(ValueError, match="visuals: got 2, in a prompt of several visuals"):
            asking.answers([one])


# Likelihoods


def test_a_likelihood_is_that_of_the_models_own_forward(tiny: Any) -> None:
    model, processor = tiny
    name = type(host_of(model)).__name__
    if name == "LlamaVidHost":
        pytest.skip("ends its answers with a word of its own")
    asking = Answering(model, processor)
    (found,) = asking.likelihoods([Request(lambda: Asked((), "Who?"), "it", continuation="yes it")])
    ids = token_ids(processor.tokenizer, "yes it")
    inputs = own_call(host_of(model), model, processor, [None], ["Who?"], to="generate")
    prompt = inputs["input_ids"]
    inputs["input_ids"] = torch.cat([prompt, torch.tensor([ids])], dim=1)
    for mask in inputs.keys() & {"attention_mask", "mm_token_type_ids"}:
        more = torch.full((1, len(ids)), int(mask == "attention_mask"), dtype=inputs[mask].dtype)
        inputs[mask] = torch.cat([inputs[mask], more], dim=1)
    with torch.no_grad():
        logits = model(**inputs).logits[0, prompt.shape[1] - 1 : -1].float()
    each = logits.log_softmax(dim=-1)[range(len(ids)), ids]
    assert found.total == pytest.approx(float(each.sum()), abs=1e-4)
    assert found.loss == pytest.approx(float(-each.mean()), abs=1e-4)


def test_the_models_own_answer_is_greedy_and_likeliest(demo: Any, opened: list[Any]) -> None:
    choices = ("6", "top left", "cyan")
    asked = [
        Request(lambda one=one: Asked(NEEDLES, one.text), NEEDLES, continuation=f" {choice}")
        for one in QUESTIONS[:3]
        for choice in choices
    ]
    found = Answering(*demo, batch_size=4).likelihoods(asked)
    for i, one in enumerate(QUESTIONS[:3]):
        mine = found[3 * i : 3 * i + 3]
        assert min(range(3), key=lambda j: mine[j].loss) == choices.index(one.answer)
        assert [likelihood.greedy for likelihood in mine] == [c == one.answer for c in choices]
    assert opened == [NEEDLES[0].source]


def test_a_tokenizer_that_is_not_known_is_told() -> None:
    with pytest.raises(ValueError, match="likelihood: got dict as the tokenizer"):
        token_ids({}, "yes")


@pytest.mark.parametrize("text", ["", "<|im_end|>"])
def test_nothing_has_no_likelihood(demo: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"likelihood: got {re.escape(repr(text))}, wanted a text"):
        token_ids(demo[1].tokenizer, text)


# Rounds


def test_rounds_about_one_video_see_it_once(demo: Any, opened: list[Any]) -> None:
    rounds = [Asked(NEEDLES, QUESTIONS[0].text), Asked((), QUESTIONS[1].text),
              Asked(NEEDLES, QUESTIONS[2].text), Asked(BUNNY, QUESTIONS[0].text)]  # fmt: skip
    calls: list[dict[str, Any]] = []

    def turn(**earlier: Any) -> Any:
        calls.append(earlier)
        place = earlier.get("round_idx", 0)
        return (rounds[place] if place < 4 else None), None, place

    said = Answering(*demo).rounds(turn, Settings.of({"max_new_tokens": 8}))
    assert said[0] == QUESTIONS[0].answer and said[2] == QUESTIONS[2].answer
    assert opened == [NEEDLES[0].source, BUNNY[0].source]
    assert calls[2] == {"round_idx": 2, "previous_output": said[:2], "previous_round_info": 1}
    open_ = bvllm.open_video(demo[0], NEEDLES[0].source, processor=demo[1])
    history = [(QUESTIONS[0].text, said[0])]
    assert said[1] == open_.ask(QUESTIONS[1].text, history=history, max_new_tokens=8).text


def test_a_task_may_end_with_answers_of_its_own(demo: Any) -> None:
    def turn(**earlier: Any) -> Any:
        return (None, ["kept"], None) if earlier else (Asked(NEEDLES, "Who?"), None, None)

    assert Answering(*demo).rounds(turn, Settings()) == ["kept"]


# The paper's tasks that lmms-eval has not


def tries(kind: str, video: str, right: str) -> list[dict[str, Any]]:
    """Four tries, each right ("+") or not."""
    return [{"sample": f"{kind} {video}", "type": kind, "right": one == "+"} for one in right]


def test_vnbench_counts_samples_of_which_all_tries_are_right() -> None:
    gathered = [
        *tries("ret_edit1", "a", "++++"),
        *tries("ret_edit1", "b", "+++-"),
        *tries("ret_insert1", "a", "++++"),
        *tries("ord_edit1", "a", "----"),
        *tries("cnt_edit1", "a", "++++"),
        *tries("cnt_edit1", "c", "+++"),
    ]
    assert vnbench.retrieval(gathered) == pytest.approx((0.5 + 1) / 2)
    assert vnbench.ordering(gathered) == 0
    assert vnbench.counting(gathered) == pytest.approx(0.5)
    assert vnbench.overall(gathered) == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    assert vnbench.single_tries(gathered) == pytest.approx(18 / 23)
    assert math.isnan(vnbench.ordering(tries("ret_edit1", "a", "++++")))


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("(C) a dog", "C"),
        ("D. nothing", "D"),
        ("A dog is seen", "C"),
        ("The answer is B.", "B"),
        ("Answer: (B)", "B"),
        ("a cat, then a dog", ""),
        ("a bear", "A"),
        ("I do not know", ""),
        ("", ""),
    ],
)
def test_the_choice_in_an_answer(said: str, letter: str) -> None:
    doc = {"options": ["bear", "cat", "dog", "eel"], "type": "ret_insert1", "video": "a.mp4"}
    for answer in "ABCD":
        found = vnbench.results({**doc, "answer": answer}, [said])
        assert found["vnbench_retrieval"]["right"] == (answer == letter)


@pytest.mark.parametrize(
    ("said", "answer", "exact", "inside"),
    [
        ("Guitar.", "guitar", 1, 1),
        ("A man plays the guitar.", "guitar", 0, 1),
        ("2", "two", 1, 1),
        ("manhole", "man", 0, 0),
        ("", "man", 0, 0),
    ],
)
def test_open_answers_are_compared_by_words(
    said: str, answer: str, exact: float, inside: float
) -> None:
    found = open_answers.results({"answer": answer}, [said])
    assert found == {"exact_match": exact, "answer_in_reply": inside}


def test_data_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = json.loads((TASKS / "vnbench" / "where.json").read_text())
    monkeypatch.delenv("VNBENCH", raising=False)
    with pytest.raises(ValueError, match="VNBENCH: got no such environment variable"):
        local_data.rows_of(where)
    monkeypatch.setenv("VNBENCH", str(tmp_path))
    with pytest.raises(ValueError, match=r"wanted a folder with VNBench-main-4try\.json in it"):
        local_data.rows_of(where)
    (tmp_path / where["file"]).write_text('{"a": 1}')
    with pytest.raises(ValueError, match="wanted a list of questions"):
        local_data.rows_of(where)
    with pytest.raises(FileNotFoundError, match=r"a\.mp4: is not there"):
        vnbench.visual({"folder": str(tmp_path), "video": "/VNBench_new/a.mp4"})
