"""Whoever asks, and however: a question is read by the BalancedTokenizer's own words and limit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_hosts import SMALL, TINY_HOSTS

import bvllm_adapters as bvllm
from bvllm_adapters.context import asking
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.question import QuestionTokenizer, own_words
from bvllm_adapters.training.host import Example, Visual
from bvllm_adapters.training.samples import Collate
from bvllm_adapters.weights.checkpoint import CheckpointError

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "walks", "by", "the", "wall", "?")
OWN: dict[str, Any] = {
    "vocabulary": WORDS, "vocab_size": len(WORDS), "max_question_tokens": 6
}  # fmt: skip
QUESTION = "Who is it that walks by the wall?"
READ = [2, 6, 7, 8, 9, 3]  # its last four words, by, the, wall and ?, between [CLS] and [SEP]
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=TINY_HOSTS)
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    return request.param(tmp_path_factory.mktemp("host"))


@pytest.fixture
def wrapped(host: tuple[Any, Any]) -> tuple[Any, Any]:
    model = copy.deepcopy(host[0])
    settings = SMALL | OWN
    return bvllm.wrap(model, config=replace(host_of(model).config(model), **settings)), host[1]


@contextmanager
def reading(model: Any) -> Iterator[list[list[int]]]:
    """The ids that its stages are given."""
    seen: list[list[int]] = []
    hooks = [
        model.balanced_tokenizer.frame_selector.register_forward_pre_hook(
            lambda module, given: seen.append(given[1].tolist())
        ),
        model.balanced_tokenizer.spatial_sampler.register_forward_pre_hook(
            lambda module, given: seen.extend(given[1].tolist())
        ),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def prompt_of(model: Any, processor: Any) -> dict[str, Any]:
    """What forward() and generate() take, as the host's own scripts make it."""
    if hasattr(processor, "question_vocabulary"):
        messages = [
            {
                "role": "user",
                "content": [{"type": "video", "video": FRAMES}, {"type": "text", "text": QUESTION}],
            }
        ]
        return dict(processor.apply_chat_template(messages, tokenize=True))
    host = host_of(model).training(processor)  # type: ignore[attr-defined]
    pixels = host_of(model).pixels(processor, FRAMES)
    ids = torch.tensor([host.ids(host.prompt([f"<video>\n{QUESTION}"]))])
    visual = Visual("video", pixels, torch.arange(5.0))
    return {"input_ids": ids, **host.inputs([Example("", "", ids[0], ids[0], (visual,))])}


def ask(model: Any, processor: Any) -> None:
    bvllm.ask(model, FRAMES, QUESTION, processor=processor, max_new_tokens=2)


def forward(model: Any, processor: Any) -> None:
    model(**prompt_of(model, processor))


def generate(model: Any, processor: Any) -> None:
    given = prompt_of(model, processor)
    ids = given.pop("input_ids")
    model.generate(ids, **given, max_new_tokens=2)


def train(model: Any, processor: Any) -> None:
    """A batch as the trainer gives it, the question said by `asking`."""
    host = host_of(model).training(processor)  # type: ignore[attr-defined]
    ids = torch.tensor(host.ids(host.prompt([f"<video>\n{QUESTION}", "A dog."])))
    pixels = host_of(model).pixels(processor, FRAMES)
    visual = Visual("video", pixels, torch.arange(5.0))
    example = Example("", QUESTION, ids, ids.clamp_min(0), (visual,), (1,))
    batch = Collate(host)([example])
    batch = {k: v for k, v in batch.items() if k not in ("seeds", "skipped", "drawn")}
    with asking(batch.pop("questions")):
        model(**batch)


@torch.no_grad()
@pytest.mark.parametrize("way", [ask, forward, generate, train])
def test_it_is_read_by_what_the_caller_wrapped_with(
    wrapped: tuple[Any, Any], way: Callable[[Any, Any], None]
) -> None:
    model, processor = wrapped
    with reading(model) as seen:
        way(model, processor)
    assert seen and all(ids == READ for ids in seen)


@torch.no_grad()
def test_what_is_said_around_a_call_goes_before_what_it_holds(wrapped: tuple[Any, Any]) -> None:
    model, processor = wrapped
    with reading(model) as seen, asking("who?"):
        forward(model, processor)
    assert seen and all(ids == [2, 4, 9, 3] for ids in seen)


def test_an_adapter_keeps_its_words(wrapped: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = wrapped
    bvllm.save_adapter(model, tmp_path)
    bvllm.wrap(bvllm.unwrap(model), adapter=tmp_path)
    assert model.balanced_tokenizer.config.vocabulary == WORDS
    assert model.balanced_tokenizer.question_tokenizer(QUESTION).tolist() == READ


def test_a_change_of_settings_is_a_change_of_reading(wrapped: tuple[Any, Any]) -> None:
    tokenizer = copy.deepcopy(wrapped[0].balanced_tokenizer)
    tokenizer.config = replace(tokenizer.config, max_question_tokens=3)
    assert tokenizer.question_tokenizer(QUESTION).tolist() == [2, 9, 3]


def test_a_checkpoints_words_are_those_of_its_config(host: tuple[Any, Any], tmp_path: Path) -> None:
    """Where the caller says nothing, and where an adapter is older than the name of the words."""
    model = copy.deepcopy(host[0])
    fitting = replace(host_of(model).config(model), **SMALL)
    bvllm.wrap(model, config=fitting)
    own = fitting.vocabulary
    assert model.balanced_tokenizer.config == fitting
    read = model.balanced_tokenizer.question_tokenizer(QUESTION)
    assert torch.equal(read, QuestionTokenizer(256, own)(QUESTION))
    bvllm.save_adapter(model, tmp_path)
    old = replace(fitting, vocabulary=None)
    old.save(tmp_path / "balanced_tokenizer.json")
    bvllm.wrap(bvllm.unwrap(model), adapter=tmp_path)
    assert model.balanced_tokenizer.config.vocabulary == own
    assert torch.equal(model.balanced_tokenizer.question_tokenizer(QUESTION), read)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "utf-8"),
        (b"", "wanted distinct words"),
        (b"red\ngreen", "wanted distinct words"),
        ("\n".join([*WORDS, "who"]).encode(), "wanted distinct words"),
    ],
)
def test_a_file_of_other_words_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"words.txt: cannot be read .*{reason}"):
        own_words(tmp_path / "words.txt")


def test_words_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("\n".join(WORDS))
    assert own_words(file) == (*WORDS, "[DEC]") and own_words(WORDS) == WORDS
    bundled = Path(bvllm.__file__).parent / "data" / "bert-base-uncased-vocab.txt"
    assert own_words(bundled) is None
    assert own_words([*bundled.read_text(encoding="utf-8").splitlines(), "[DEC]"]) is None
