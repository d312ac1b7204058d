"""The question that a prompt asks, read from its ids: what the user said last."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.context import asked
from bvllm_adapters.hosts.find import processor_of
from bvllm_transformers.placeholders import Place

IGNORED = -100  # of labels
_SAID = "zzfirstzz", "zzsecondzz", "zzthirdzz"  # by whose places a template is read
_MARK = "\0"  # of what is no words


def questions_of(
    model: Any,
    inputs: Mapping[str, Any],
    tokenizer: BalancedTokenizer,
    places: Sequence[Place] = (),
) -> list[str]:
    """What each prompt of a batch asks, where anything reads it; else nothing.

    What `bvllm_adapters.question.asking` says goes before what the ids say.

    Args:
        places: the prompt's videos, whose own text, such as frames' times, is no question.

    Raises:
        ValueError: the ids cannot be read, as the model's tokenizer is not known.
    """
    ids: Tensor = inputs["input_ids"]
    said = [asked(row) for row in range(len(ids))]
    if not reads_question(tokenizer) or all(text is not None for text in said):
        return [text or "" for text in said]
    reader = reader_of(model)
    words = words_of(inputs, places)
    return [
        reader.question(row[mask].tolist()) if text is None else text
        for text, row, mask in zip(said, ids, words.to(ids.device), strict=True)
    ]


def reads_question(tokenizer: BalancedTokenizer) -> bool:
    """Whether any stage makes something of the question."""
    if tokenizer.spatial_sampler is not None or not tokenizer.chooses_untrained:
        return True
    return bool(getattr(tokenizer.frame_selector, "reads_question", True))


def words_of(inputs: Mapping[str, Any], places: Sequence[Place]) -> Tensor:
    """(B, L) bool: what of prompts was written by somebody before the first answer in `labels`."""
    ids: Tensor = inputs["input_ids"]
    words = torch.ones(ids.shape, dtype=torch.bool)
    if inputs.get("attention_mask") is not None:
        words &= inputs["attention_mask"].cpu().bool()
    if inputs.get("labels") is not None:  # answers never reach the question
        answers = (inputs["labels"].cpu() != IGNORED) & words
        words &= answers.cumsum(1) == 0
    for place in places:
        for begin, end in place.spans:
            words[place.row, begin:end] = False
        words[place.row, place.columns[0, 0]] = True  # parts what was said before and after it
    return words


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads prompts of one model.

    Args:
        tokenizer: the model's. opens, closes: what stands before and behind what a user says;
            empty where no chat template tells it.
    """

    tokenizer: Any
    opens: str = ""
    closes: str = ""

    def question(self, ids: Sequence[int]) -> str:
        """What the user said in the last turn that has any words."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        for turn in reversed(self._turns(text)):
            said = self._without_special(turn)
            if said:
                return said
        return ""

    def _turns(self, text: str) -> list[str]:
        if self.opens and self.opens in text:
            turns = text.split(self.opens)[1:]
            return [turn.split(self.closes)[0] if self.closes else turn for turn in turns]
        special = self.tokenizer.all_special_tokens
        return _split(text, special)  # of no known template: the last words there are

    def _without_special(self, turn: str) -> str:
        tokens = self.tokenizer
        special = {*tokens.all_special_tokens, *map(str, tokens.added_tokens_decoder.values())}
        return "\n".join(part for part in map(str.strip, _split(turn, special)) if part)


def _split(text: str, special: Sequence[str] | set[str]) -> list[str]:
    for token in sorted(special, key=len, reverse=True):
        text = text.replace(token, _MARK)
    return text.split(_MARK)


_readers: weakref.WeakKeyDictionary[Any, Reader] = weakref.WeakKeyDictionary()


def reader_of(model: Any) -> Reader:
    """The one of a model; its tokenizer is loaded once."""
    found = _readers.get(model)
    if found is None:
        try:
            processor = processor_of(model)
        except ValueError as error:
            raise ValueError(
                "question: the prompt's ids cannot be read without the model's tokenizer, wanted "
                "bvllm_adapters.question.asking(...) around the call, or a model of a folder that "
                "holds one"
            ) from error
        found = _readers[model] = reader(processor)
    return found


def reader(processor: Any) -> Reader:
    """Of a processor, or of a tokenizer alone."""
    tokenizer = getattr(processor, "tokenizer", processor)
    for whole in (processor, tokenizer):
        for shaped in (lambda text: [{"type": "text", "text": text}], str):
            opens, closes = _brackets(whole, shaped)
            if opens:
                return Reader(tokenizer, opens, closes)
    return Reader(tokenizer)


def _brackets(processor: Any, shaped: Any) -> tuple[str, str]:
    """What a chat template puts before and behind a user's words."""
    roles = ("user", "assistant", "user")
    turns = [
        {"role": role, "content": shaped(text)} for role, text in zip(roles, _SAID, strict=True)
    ]
    try:
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, rest = text.split(_SAID[0])
        between, rest = rest.split(_SAID[1])
        again, after = rest.split(_SAID[2])
    except Exception:  # a template raises what it likes; then it does not help
        return "", ""
    if "'text'" in text:  # it takes words alone, and printed the list of parts
        return "", ""
    opens = _alike(before[::-1], again[::-1])[::-1]
    return opens.strip(), _alike(between, after).strip()


def _alike(one: str, other: str) -> str:
    """What both begin with."""
    pairs = zip(one, other, strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
