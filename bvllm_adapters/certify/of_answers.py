"""Checks of `bvllm.ask` and its kin: from a video to the words of an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from transformers import LogitsProcessor

from bvllm_adapters.certify.compared import same
from bvllm_adapters.certify.report import Check
from bvllm_adapters.certify.spies import read_by
from bvllm_adapters.certify.subject import NEW, OTHER, QUESTION, Subject
from bvllm_adapters.conversation import ask_batch
from bvllm_adapters.features import VisualTokens

ROUNDS = 3  # that each thread asks


def check_read(s: Subject, prompt: torch.Tensor, made: list[VisualTokens]) -> int:
    """AssertionError unless a prompt shows the language model the tokens that were made, in their
    order, and nothing else but words. Returns how many."""
    assert made, "the model's BalancedTokenizer was not called, wanted its visual tokens"
    shown = s.seen_in(prompt)
    tokens = torch.cat([each.tokens for each in made])[:, : shown.shape[1]].to(shown)
    wanted = len(tokens) + sum(each.beside for each in made)
    assert len(shown) == wanted, (
        f"the language model reads {len(shown)} visual tokens, wanted the {wanted} that were made"
    )
    same("tokens that the language model reads, in order", shown[: len(tokens)], tokens)
    return wanted


def asked(s: Subject) -> str:
    with s.wrapped():
        opened = s.open(s.video)
        answer = opened.ask(QUESTION, **NEW)
        assert answer.trace.num_tokens <= s.budget, (
            f"trace: got {answer.trace.num_tokens} tokens over a budget of {s.budget}"
        )
        tight = opened.ask(QUESTION, max_tokens=2, **NEW).trace.num_tokens
        assert tight <= 2, f"max_tokens=2: got {tight} tokens"
        count = check_read(s, *s.read_answering(opened))
    return f"{count} visual tokens in the language model, those that were made"


def several(s: Subject) -> str:
    with s.wrapped():
        opened = s.open(s.video)
        words: list[int] = []
        counting = [_Counting(words)]
        opened.ask(QUESTION, max_new_tokens=2, do_sample=False, logits_processor=counting)
        assert 0 < len(words) <= 2, f"max_new_tokens=2: got {len(words)} words seen by a processor"
        beams = opened.ask(QUESTION, num_beams=3, num_return_sequences=2, **NEW)
        same("answers of num_return_sequences=2", len(beams.texts), 2)
    return "a limit of new ids, a processor of logits, beams with two answers"


class _Counting(LogitsProcessor):
    """Notes each new word, and changes nothing."""

    def __init__(self, words: list[int]) -> None:
        self.words = words

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.words.append(input_ids.shape[1])
        return scores


def batch(s: Subject) -> str:
    s.needs_float32()
    with s.wrapped():
        opened = [s.open(video) for video in (s.video, s.picture, s.other)]
        items = [(each, question) for question in (QUESTION, OTHER, "") for each in opened]
        alone = [each.ask(question, **NEW) for each, question in items]
        together = ask_batch(items, batch_size=4, **NEW)
        for i, (got, wanted) in enumerate(zip(together, alone, strict=True)):
            same(f"answer {i} in a batch", got.text, wanted.text)
            same(f"frames of answer {i} in a batch", got.trace.frames, wanted.trace.frames)
    return f"{len(items)} questions of {len(opened)} videos and pictures, four at a time"


def threads(s: Subject) -> str:
    """Two ask one model about two videos at once; each gets what it gets alone."""
    with s.wrapped():
        pairs = (s.open(s.video), QUESTION), (s.open(s.other), OTHER)
        with read_by(s.model, s.host.tower(s.model)) as read:
            wanted = [video.ask(question, **NEW).text for video, question in pairs]
        alone = _prompts(read)
        told: list[list[str]] = [[], []]

        def work(i: int) -> Callable[[], None]:
            video, question = pairs[i]
            return lambda: told[i].extend(video.ask(question, **NEW).text for _ in range(ROUNDS))

        with read_by(s.model, s.host.tower(s.model)) as read:
            run_at_once(work(0), work(1))
        for i, texts in enumerate(told):
            same(f"answers in thread {i}", texts, [wanted[i]] * ROUNDS)
        both = _prompts(read)
        for prompt in alone:
            same(
                "how often a prompt was read", _count(prompt, both), ROUNDS * _count(prompt, alone)
            )
    return f"two, {ROUNDS} questions each"


def _prompts(read: list[torch.Tensor]) -> list[torch.Tensor]:
    """Without the steps that follow them, of one word each."""
    return [each for each in read if each.shape[1] > 1]


def _count(prompt: torch.Tensor, among: list[torch.Tensor]) -> int:
    return sum(one.shape == prompt.shape and torch.equal(one, prompt) for one in among)


def run_at_once(*works: Callable[[], None]) -> None:
    """All in threads of their own; what any of them raises is raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def guarded(work: Callable[[], None]) -> None:
        try:
            start.wait()
            work()
        except BaseException as error:  # whichever it is, the caller is to see it
            errors.append(error)

    running = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def hears(s: Subject) -> str:
    with s.wrapped():
        one, other, again = (
            s.read_answering(s.open(video))[0] for video in (s.video, s.other, s.video)
        )
        same("prompt of the same video", again, one)
        alike = one.shape == other.shape and torch.equal(one, other)
        assert not alike, "two videos gave the language model the same prompt"
    return "the prompts of two videos differ, those of one do not"


CHECKS = (
    Check("ask", "1, 3", "the language model reads the tokens that were made", asked),
    Check("hears the video", "", "another video is another prompt", hears),
    Check("several answers", "", "settings of generate() are carried through", several),
    Check("batch", "6", "an answer does not depend on its batch", batch),
    Check("two threads", "14", "two may ask one model at once", threads),
)
