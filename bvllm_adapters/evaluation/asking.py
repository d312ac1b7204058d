"""Rows of a table put to a model, and what came of each, as plain data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bvllm_adapters.bulk.told import compact
from bvllm_adapters.conversation import Answer, OpenVideo, ask_batch
from bvllm_adapters.evaluation.exact_match import ASK_BRIEFLY, matches
from bvllm_adapters.evaluation.letters import ASK_LETTER, letter_of, lettered
from bvllm_adapters.evaluation.likelihood import Likelihood, likelihoods
from bvllm_adapters.evaluation.table_questions import TableQuestion
from bvllm_adapters.trace import Trace

Pair = tuple[TableQuestion, OpenVideo]


@dataclass(frozen=True)
class Asking:
    """How rows are asked.

    Args:
        circular: each question as often as it has options, which are turned by one each time; it is
            right if it is right each time (CircularEval, of which VNBench's protocol is a case).
        instruction: behind each prompt, in place of our own; "": none.
        reads_query: whether the model's selector reads a text in place of the prompt.
        batch_size: prompts that the language model sees at a time.
    """

    circular: bool = False
    instruction: str | None = None
    max_tokens: int | None = None
    max_new_tokens: int | None = 32
    batch_size: int = 1
    reads_query: bool = False

    def orders(self, question: TableQuestion) -> list[tuple[int, ...]]:
        """Places of the options as they stand in each prompt that is made of a question."""
        count = len(question.options)
        turns = count if self.circular and question.by == "letter" else 1
        return [tuple((turn + i) % count for i in range(count)) for turn in range(turns)]

    def prompt(self, question: TableQuestion, order: Sequence[int]) -> str:
        if question.by == "likelihood":  # the options are not told, but put to it
            return "\n".join([question.question, *filter(None, [self.instruction])])
        if question.by == "letter":
            options = [question.options[i] for i in order]
            instruction = ASK_LETTER if self.instruction is None else self.instruction
            return lettered(question.question, options, instruction)
        instruction = ASK_BRIEFLY if self.instruction is None else self.instruction
        return "\n".join([question.question, *filter(None, [instruction])])

    def query(self, question: TableQuestion) -> str | None:
        """What a scout reads: never the options, nor how to answer."""
        return (question.query or question.question) if self.reads_query else None


def ask_rows(pairs: Sequence[Pair], how: Asking) -> list[dict[str, Any]]:
    """What came of each row, of one or more; `seconds` are its part of the time that went by.

    Raises: see `ask_batch` and `likelihoods`.
    """
    begin = time.perf_counter()
    scored = [pair for pair in pairs if pair[0].by == "likelihood"]
    told = [pair for pair in pairs if pair[0].by != "likelihood"]
    found = {**_scored(scored, how), **_told(told, how)}
    each = (time.perf_counter() - begin) / sum(row["prompts"] for row in found.values())
    for row in found.values():
        row["seconds"] = each * row["prompts"]
    return [found[question.row] for question, _ in pairs]


def _told(pairs: Sequence[Pair], how: Asking) -> dict[int, dict[str, Any]]:
    """By what the model says: a letter, or the answer."""
    asked = [
        (question, order, video) for question, video in pairs for order in how.orders(question)
    ]
    answers = iter(
        ask_batch(
            [(video, how.prompt(question, order)) for question, order, video in asked],
            batch_size=how.batch_size,
            query=[how.query(question) for question, _, _ in asked],
            max_tokens=how.max_tokens,
            max_new_tokens=how.max_new_tokens,
            do_sample=False,  # the same answer on every run
        )
    )
    found = {}
    for question, _ in pairs:
        each = [_judged(question, order, next(answers)) for order in how.orders(question)]
        row = each[0][0] if len(each) == 1 else _all_of([one for one, _ in each])
        found[question.row] = _row(question, row, [trace for _, trace in each])
    return found


def _judged(
    question: TableQuestion, order: Sequence[int], answer: Answer
) -> tuple[dict[str, Any], Trace]:
    if question.by == "match":
        right = matches(answer.text, question.answers)
        return {"said": answer.text, "predicted": answer.text, "right": right}, answer.trace
    place = letter_of(answer.text, [question.options[i] for i in order])
    option = None if place is None else order[place]
    predicted = None if option is None else question.options[option]
    row = {"said": answer.text, "predicted": predicted, "right": option == question.right}
    return (row if place is not None else {**row, "unparsed": True}), answer.trace


def _all_of(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Right if right each time."""
    return {
        "said": [one["said"] for one in each],
        "predicted": [one["predicted"] for one in each],
        "right": all(one["right"] for one in each),
        "right_times": sum(one["right"] for one in each),
        **({"unparsed": True} if any("unparsed" in one for one in each) else {}),
    }


def _scored(pairs: Sequence[Pair], how: Asking) -> dict[int, dict[str, Any]]:
    """By how likely each option is: the likeliest is what the model means."""
    asked = [(question, video, option) for question, video in pairs for option in question.options]
    if not asked:
        return {}
    read = likelihoods(
        [(video, how.prompt(question, ())) for question, video, _ in asked],
        [option for _, _, option in asked],
        batch_size=how.batch_size,
        queries=[how.query(question) for question, _, _ in asked],
        max_tokens=how.max_tokens,
    )
    found, at = {}, 0
    for question, _ in pairs:
        here = read[at : at + len(question.options)]
        at += len(question.options)
        of: list[Likelihood] = [one for _, one in here]
        whole = max(range(len(of)), key=lambda i: of[i].total)
        by_length = max(range(len(of)), key=lambda i: of[i].of_a_letter)
        row = {
            "predicted": question.options[whole],
            "right": whole == question.right,
            "predicted_by_length": question.options[by_length],
            "right_by_length": by_length == question.right,
            "likelihoods": [round(one.total, 5) for one in of],
        }
        found[question.row] = _row(question, row, [answer.trace for answer, _ in here])
    return found


def _row(question: TableQuestion, came: dict[str, Any], traces: Sequence[Trace]) -> dict[str, Any]:
    """Args: traces: of all prompts that were made of it; the first is told."""
    options = {"options": list(question.options)} if question.options else {}
    return {
        **question.told,
        **options,
        "answer": question.answers[0] if len(question.answers) == 1 else [*question.answers],
        **came,
        "tokens": max(trace.num_tokens for trace in traces),
        "max_tokens": traces[0].max_tokens,
        "trace": compact(traces[0]),
        "prompts": len(traces),
    }
