"""Rows as examples and batches: what is learned, what is drawn, what is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import HOSTS, ROWS, talk

from bvllm_adapters.hosts.find import find_host
from bvllm_adapters.training.chat import tokenized
from bvllm_adapters.training.conversations import RowError, parse
from bvllm_adapters.training.host import Example
from bvllm_adapters.training.rows import Source, read_rows
from bvllm_adapters.training.samples import Collate, Samples, ShuffledRows, Skipped

ANSWERS = ["noise", "yes, it is."]


def training_of(host: str, folder: Path) -> Any:
    made: Any = find_host(f"{host}:HOST")
    return made.training(made.processor(folder))


def words_of(host: Any, ids: torch.Tensor) -> str:
    tokenizer = host.processor.tokenizer
    text = tokenizer.decode([i for i in ids.tolist() if i >= 0])
    return "".join(text.split())


@pytest.mark.parametrize("name", HOSTS)
def test_answers_and_their_ends_are_learned(name: str, hosts: dict[str, Path]) -> None:
    host = training_of(name, hosts[name])
    row = parse(ROWS[1], Path(), "row")
    ids, labels = tokenized(row, host, 2048)
    assert torch.equal(labels[labels != -100], ids[labels != -100])
    # Two runs of learned ids, each an answer and one id that ends it.
    learned = (labels != -100).long()
    begins = (learned.diff(prepend=torch.zeros(1, dtype=torch.long)) == 1).nonzero()[:, 0]
    assert len(begins) == 2
    for begin, answer in zip(begins.tolist(), ANSWERS, strict=True):
        run = labels[begin:]
        run = run[: int((run == -100).long().argmax())] if bool((run == -100).any()) else run
        assert int(run[-1]) in host.end_ids
        assert words_of(host, run[:-1]) == answer.replace(" ", "")
    # What stands before an answer is what the host is asked with.
    asked = torch.tensor(host.ids(host.prompt(row.turns[:1])))
    assert torch.equal(ids[: int(begins[0])], asked)
    assert sum(int(i) in host.placeholders for i in ids) == 1


@pytest.mark.parametrize("name", HOSTS)
def test_the_prompt_is_the_hosts_own(name: str, hosts: dict[str, Path]) -> None:
    host = training_of(name, hosts[name])
    processor = host.processor
    ids = host.ids(host.prompt(["<video>\nwhat is it?"]))
    if name == "bvllm_qwen2":
        chat = [{"role": "user", "content": "<video>\nwhat is it?"}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        assert ids == processor.tokenizer(text)["input_ids"]
    elif name == "bvllm_videollama2":
        assert ids == processor.ids(processor.prompt("what is it?", "video"), "video")[0].tolist()
    else:
        assert ids == processor.tokenizer(processor.prompt("what is it?")).tolist()


def test_long_rows_lose_their_end(hosts: dict[str, Path]) -> None:
    host = training_of("bvllm_qwen2", hosts["bvllm_qwen2"])
    row = parse(ROWS[0], Path(), "row")
    ids, labels = tokenized(row, host, 2048)
    cut, cut_labels = tokenized(row, host, len(ids) - 3)
    assert torch.equal(cut, ids[:-3])
    assert torch.equal(cut_labels, labels[:-3])
    with pytest.raises(RowError, match="leaves no answer"):
        tokenized(row, host, int((labels != -100).long().argmax()))
    place = next(i for i, token in enumerate(ids.tolist()) if token in host.placeholders)
    with pytest.raises(RowError, match="cuts off an image or video"):
        tokenized(row, host, place)


def test_a_template_that_forgets_is_refused(hosts: dict[str, Path]) -> None:
    host = training_of("bvllm_videollama2", hosts["bvllm_videollama2"])
    host.prompt = lambda turns: " ".join(turns[-2:])
    with pytest.raises(RowError, match="writes earlier turns differently"):
        tokenized(parse({"conversations": talk("a", "b", "c", "d")}, Path(), ""), host, 99)


@pytest.mark.parametrize("name", HOSTS)
def test_a_system_turn_is_said_and_not_learned(name: str, hosts: dict[str, Path]) -> None:
    host = training_of(name, hosts[name])
    system = {"from": "system", "value": "a big rabbit"}
    plain = parse({"conversations": talk("are you sure?", "yes, it is.")}, Path(), "row")
    told = parse({"conversations": [system, *talk("are you sure?", "yes, it is.")]}, Path(), "row")
    (ids, labels), (more, more_labels) = (tokenized(one, host, 2048) for one in (plain, told))
    assert torch.equal(more_labels[more_labels != -100], labels[labels != -100])
    words = words_of(host, more)
    assert words.count("abigrabbit") == 1
    assert words.index("abigrabbit") < words.index("areyousure?")
    assert "abigrabbit" not in words_of(host, ids)
    # It stands in place of what the format says itself.
    own = getattr(host.processor, "system", None) or "You are a helpful assistant."
    assert "".join(own.split()) not in words


def test_a_system_turn_of_llama_2s_habits(hosts: dict[str, Path]) -> None:
    from bvllm_videollama2.prompts import SYSTEM

    host = training_of("bvllm_videollama2", hosts["bvllm_videollama2"])
    host.processor.system = SYSTEM
    assert SYSTEM in host.prompt(["q"])
    told = host.prompt(["q"], system="Be short.")
    assert "<<SYS>>\nBe short.\n<</SYS>>" in told
    assert SYSTEM not in told


def test_a_format_without_system_turns_is_named(hosts: dict[str, Path]) -> None:
    host = training_of("bvllm_qwen2", hosts["bvllm_qwen2"])
    said = [{"from": "system", "value": "be short"}, *talk("q", "a")]
    row = parse({"conversations": said}, Path(), "row")
    prompt = host.prompt
    host.prompt = lambda turns, system=None: prompt(turns)
    with pytest.raises(RowError, match="no place for a system turn"):
        tokenized(row, host, 99)
    host.prompt = prompt
    host.processor.chat_template = "{{ raise_exception('Only user and assistant') }}"
    with pytest.raises(RowError, match="refuses a system turn: Only user"):
        tokenized(row, host, 99)
    host.prompt = lambda turns: prompt(turns)
    with pytest.raises(RowError, match="refuses a system turn"):
        tokenized(row, host, 99)


def test_a_placeholder_that_the_host_loses_is_refused(hosts: dict[str, Path]) -> None:
    host = training_of("bvllm_qwen2", hosts["bvllm_qwen2"])
    host.placeholders = ()
    with pytest.raises(RowError, match="got 0 placeholders in the prompt, wanted 1"):
        tokenized(parse(ROWS[0], Path(), ""), host, 99)


def samples_of(data: Any, host: Any, **settings: Any) -> Samples:
    return Samples(read_rows([Source(data.file, data.folder)]), host, **settings)


@pytest.mark.parametrize("name", HOSTS)
def test_batches_are_what_forward_takes(name: str, hosts: dict[str, Path], data: Any) -> None:
    host = training_of(name, hosts[name])
    samples = samples_of(data, host, max_frames=5)
    drawn = [samples[0, i] for i in range(4)]
    assert all(isinstance(one, Example) for one in drawn), drawn
    batch = Collate(host)(drawn)
    assert [len(one.visuals) for one in drawn if isinstance(one, Example)] == [1, 1, 0, 1]
    assert batch["questions"] == [
        "who walks over the meadow?",
        "what is this?",
        "how are you?",
        "is there a tree?",
    ]
    assert len(batch["seeds"]) == 3
    for i, example in enumerate(drawn):
        assert isinstance(example, Example)
        length = len(example.input_ids)
        assert torch.equal(batch["input_ids"][i, :length], example.input_ids)
        assert torch.equal(batch["labels"][i, :length], example.labels)
        assert batch["attention_mask"][i].tolist() == [1] * length + [0] * (
            batch["input_ids"].shape[1] - length
        )
        assert bool((batch["labels"][i, length:] == -100).all())
    words = Collate(host)([samples[0, 2]])
    assert {"images", "pixel_values"} & set(batch)
    assert not {"images", "pixel_values"} & set(words)


def test_noise_is_a_rows_own_and_changes_by_round(hosts: dict[str, Path], data: Any) -> None:
    host = training_of("bvllm_qwen2", hosts["bvllm_qwen2"])
    samples, others = samples_of(data, host), samples_of(data, host, seed=1)
    seeds = {
        draw: source[draw].seeds  # type: ignore[union-attr]
        for source, draws in ((samples, [(0, 0), (0, 3), (1, 0)]), (others, [(0, 1)]))
        for draw in draws
    }
    assert len(set(seeds.values())) == 4
    again = samples_of(data, host)[0, 0]
    assert isinstance(again, Example)
    assert again.seeds == seeds[0, 0]
    assert others[0, 0].seeds != again.seeds  # type: ignore[union-attr]


def test_unreadable_rows_are_named(hosts: dict[str, Path], data: Any) -> None:
    (data.folder / "broken.mp4").write_bytes(b"nothing")
    said = talk("<video>", "a")
    data.write(
        [
            {"id": "gone", "video": "gone.mp4", "conversations": said},
            {"id": "broken", "video": "broken.mp4", "conversations": said},
            {"id": "moving", "image": "big_buck_bunny.mp4", "conversations": talk("<image>", "a")},
            {"id": "two", "image": ["noise.png"] * 2, "conversations": talk("<image>" * 2, "a")},
        ]
    )
    samples = samples_of(data, training_of("bvllm_llama_vid", hosts["bvllm_llama_vid"]))
    skipped = [samples[0, i] for i in range(4)]
    assert all(isinstance(one, Skipped) for one in skipped)
    for one, name, reason in zip(
        skipped,
        ("gone", "broken", "moving", "two"),
        ("gone.mp4", "broken.mp4", "wanted an image", "wanted 1 at most"),
        strict=True,
    ):
        assert f"(id {name})" in str(one)
        assert reason in str(one)
    batch = Collate(samples.host)(skipped)
    assert batch["skipped"] == [str(one) for one in skipped]
    assert batch["drawn"] == 4
    assert bool((batch["labels"] == -100).all())


def test_rows_come_round_after_round() -> None:
    drawn = list(ShuffledRows(5, 12, seed=0))
    assert len(drawn) == len(ShuffledRows(5, 12, seed=0)) == 12
    assert drawn == list(ShuffledRows(5, 12, seed=0))
    rounds = [[row for turn, row in drawn if turn == k] for k in range(3)]
    assert [sorted(rows) for rows in rounds[:2]] == [list(range(5))] * 2
    assert rounds[0] != rounds[1]
    assert len(set(rounds[2])) == 2
    assert drawn != list(ShuffledRows(5, 12, seed=1))
    assert list(ShuffledRows(5, 7, seed=0)) == drawn[:7]
