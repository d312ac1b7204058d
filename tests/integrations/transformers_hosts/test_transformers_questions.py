"""What a selector is asked is what the user said last, read from the prompt's ids."""

from __future__ import annotations

from typing import Any

import processors
import pytest
import torch
from asked import FRAMES, PLENTY, batch, greedy, prompt, prompt_of, wrapped
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import bvllm_adapters as bvllm
from bvllm_adapters.question import asking
from bvllm_transformers import prompt_text
from bvllm_transformers.prompt_text import reader

NAMES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
every_name = pytest.mark.parametrize("name", NAMES)
VIDEO = {"type": "video", "video": FRAMES}


class Asked(torch.nn.Module):
    """Takes the first frames and keeps what it was asked."""

    sees = True
    reads_question = True

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[str] = []

    def see(self, frames: Tensor) -> Tensor:
        return frames.flatten(1)[:, :8]

    def forward(self, cls: Tensor, question: str, **how: Any) -> bvllm.Selection:
        self.questions.append(question)
        return bvllm.Selection.whole(torch.arange(min(how["num_frames"], len(cls))), len(cls))


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def turn(role: str, *content: Any) -> dict[str, Any]:
    return {"role": role, "content": list(content)}


CONVERSATIONS: dict[str, tuple[list[Any], str]] = {
    "after the video": ([turn("user", VIDEO, text("What happens?"))], "What happens?"),
    "before the video": ([turn("user", text("What happens?"), VIDEO)], "What happens?"),
    "before the video, a line": (
        [turn("user", text("What happens?\n"), VIDEO, text("Say why."))],
        "What happens?\nSay why.",
    ),
    "around the video": ([turn("user", text("Here:"), VIDEO, text("Why?"))], "Here:\nWhy?"),
    "a system prompt": (
        [turn("system", text("You are a very helpful one.")), turn("user", VIDEO, text("Who?"))],
        "Who?",
    ),
    "several turns": (
        [
            turn("user", VIDEO, text("What happens in all of this, at length?")),
            turn("assistant", text("A cat walks over the whole of the street.")),
            turn("user", text("Why?")),
        ],
        "Why?",
    ),
    "the video last": (
        [
            turn("user", text("I shall show you something.")),
            turn("assistant", text("Please do.")),
            turn("user", VIDEO, text("  What is it?\nA. a cat\nB. a dog ")),
        ],
        "What is it?\nA. a cat\nB. a dog",
    ),
    "no words with it": (
        [
            turn("user", text("What is in the next video?")),
            turn("assistant", text("Show it.")),
            turn("user", VIDEO),
        ],
        "What is in the next video?",
    ),
    "times and numbers asked for": (
        [turn("user", VIDEO, text("What is at <3.0 seconds>, Frame7?"))],
        "What is at <3.0 seconds>, Frame7?",
    ),
    "other letters": (
        [turn("user", VIDEO, text("Wie heißt er? 何ですか"))],
        "Wie heißt er? 何ですか",
    ),
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models have the processor of their family beside them; says how often it was loaded."""
    loads: list[Any] = []

    def load(model: Any) -> Any:
        loads.append(model)
        return processors.processor(model.config.model_type)

    monkeypatch.setattr(prompt_text, "processor_of", load)
    return loads


def asked(name: str) -> tuple[Any, Asked]:
    selector = Asked()
    return wrapped(name, max_tokens=7, selector=selector), selector


@every_name
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_last_words_of_the_user(name: str, kind: str, known: list[Any]) -> None:
    messages, want = CONVERSATIONS[kind]
    model, selector = asked(name)
    with torch.no_grad():
        model(**prompt_of(name, messages))
    assert selector.questions == [want]


@every_name
def test_each_prompt_of_a_batch_is_asked_its_own(name: str, known: list[Any]) -> None:
    if name == "internvl":
        pytest.skip("its processor makes no batches")
    model, selector = asked(name)
    greedy(model, batch([prompt(name, "Who?"), prompt(name, "And where to?")], "left"))
    assert selector.questions == ["Who?", "And where to?"]
    assert len(known) == 1
    greedy(model, prompt(name))
    assert len(known) == 1  # a tokenizer is loaded once for each model


@every_name
def test_answers_never_reach_it(name: str, known: list[Any]) -> None:
    model, selector = asked(name)
    said = [turn("user", VIDEO, text("Who?"))]
    later = [turn("assistant", text("A cat")), turn("user", text("Why?"))]
    begins = prompt_of(name, said)["input_ids"].shape[1]
    for messages in (said + later[:1], said + later):
        inputs = prompt_of(name, messages)
        labels = inputs["input_ids"].clone()
        labels[:, :begins] = -100
        selector.questions.clear()
        model(**inputs, labels=labels)
        assert selector.questions == ["Who?"]  # "Why?" was asked after an answer to be learnt


@every_name
def test_asking_goes_before_the_ids(name: str, known: list[Any]) -> None:
    model, selector = asked(name)
    with asking("What else?"):
        greedy(model, prompt(name))
    assert selector.questions == ["What else?"]
    assert not known


def test_a_model_without_its_tokenizer() -> None:
    model, selector = asked("llava_onevision")
    with pytest.raises(ValueError, match=r"question: the prompt's ids cannot be read"):
        greedy(model, prompt("llava_onevision"))
    with asking(""):
        greedy(model, prompt("llava_onevision"))
    assert selector.questions == [""]


@every_name
def test_whoever_reads_no_question_needs_no_tokenizer(name: str, known: list[Any]) -> None:
    greedy(wrapped(name, max_tokens=7), prompt(name))
    greedy(wrapped(name, max_tokens=PLENTY, selector=Asked()), prompt(name))
    assert not known


def of_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = processors.processor("llava_onevision").tokenizer
    tokenizer.chat_template = template
    return tokenizer


ROLES = """{% for m in messages %}{{ m['role'] | upper }}: {% if m['content'] is string -%}
{{ m['content'] }}{% else %}{% for p in m['content'] %}{{ p.get('text', '<video>') }}{% endfor -%}
{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
INST = """{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] -}}
{{ ' [/INST]' }}{% else -%}
{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"""


@pytest.mark.parametrize(
    ("template", "said", "want"),
    [
        (ROLES, "USER: <video>Who? ASSISTANT: A cat USER: Why? ASSISTANT:", "Why?"),
        (ROLES, "SYSTEM: Be good USER: <video>Who? ASSISTANT:", "Who?"),
        (INST, "[INST] <video>Who? [/INST]A cat<|im_end|>[INST] Why? [/INST]", "Why?"),
        (None, "<|im_start|>user\n<video>Who?", "user\nWho?"),
        ("{{ raise_exception('no') }}", "<video>Who?", "Who?"),
        ("always the same", "<video>Who?", "Who?"),
        (ROLES, "", ""),
        (ROLES, "<video>of another template", "of another template"),
    ],
)
def test_other_templates(template: str | None, said: str, want: str) -> None:
    tokenizer = of_template(template)
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert reader(tokenizer).question(ids) == want
