"""How an answer is generated: which settings count, which cannot be, and what comes back of them.

A prompt with visual tokens goes to transformers' generate() as embeddings, so what needs the ids of
a whole prompt cannot be: it is refused by name here, before anything is decoded.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bvllm_adapters.checks import check_count
from bvllm_adapters.hosts.language_model import CACHE_NAMES

NEW_TOKENS = 128  # at most in an answer, where nobody says

_OWN_PROMPT = "as the prompt is made of the video, the question and its history"
_NEEDS_IDS = "as visual tokens have no ids that it could look at"
# Name -> values that ask for nothing, and why others cannot be.
REFUSED: dict[str, tuple[Collection[Any], str]] = {
    **{
        name: ((None,), _OWN_PROMPT)
        for name in (
            *("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids"),
            *CACHE_NAMES,
        )
    },
    "assistant_model": ((None,), _NEEDS_IDS),
    "assistant_tokenizer": ((None,), _NEEDS_IDS),
    "assistant_early_exit": ((None,), _NEEDS_IDS),
    "prompt_lookup_num_tokens": ((None,), _NEEDS_IDS),
    "negative_prompt_ids": ((None,), _NEEDS_IDS),
    "negative_prompt_attention_mask": ((None,), _NEEDS_IDS),
    "guidance_scale": ((None, 1, 1.0), _NEEDS_IDS),
    "encoder_repetition_penalty": ((None, 1, 1.0), _NEEDS_IDS),
    "encoder_no_repeat_ngram_size": ((None, 0), _NEEDS_IDS),
    "token_healing": ((None, False), _NEEDS_IDS),
    "prefill_chunk_size": ((None,), _NEEDS_IDS),
    "custom_generate": ((None,), "as it brings code of its own"),
    "trust_remote_code": ((None, False), "as it brings code of its own"),
    # What transformers has given up and would fetch from the hub.
    "penalty_alpha": ((None, 0, 0.0), "as transformers 5 has it no more"),
    "dola_layers": ((None,), "as transformers 5 has it no more"),
    "num_beam_groups": ((None, 1), "as transformers 5 has it no more"),
    "diversity_penalty": ((None, 0, 0.0), "as transformers 5 has it no more"),
    "constraints": ((None,), "as transformers 5 has it no more"),
    "force_words_ids": ((None,), "as transformers 5 has it no more"),
}
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_LISTS = ("logits_processor", "stopping_criteria")
_COUNTS = {"max_new_tokens": 1, "max_length": 1, "num_beams": 1, "num_return_sequences": 1,
           "min_new_tokens": 0, "min_length": 0}  # fmt: skip


class Replies(list[str]):
    """What a model said to each question in turn, `num_return_sequences` texts to each.

    `output` is what generate() returned where it was asked for more than ids, else None.
    """

    output: Any = None

    @classmethod
    def of(cls, output: Any, decode: Callable[[Tensor], list[str]]) -> Replies:
        """Of what generate() returned behind embeddings: new ids, or a ModelOutput that has them.

        Args:
            decode: (rows, L) ids -> the text of each.
        """
        whole = not isinstance(output, Tensor)
        replies = cls(text.strip() for text in decode(output.sequences if whole else output))
        replies.output = output if whole else None
        return replies


def check_settings(settings: Mapping[str, Any], *, also: Collection[str] = ()) -> None:
    """Settings are such as generate() takes and can follow behind visual tokens.

    Args:
        settings: name -> value, `generation_config` among them. also: names that it knows besides.

    Raises:
        TypeError: for a name that nobody knows, or a value of another type.
        ValueError: for what cannot be; both name the setting, what came and what was wanted.
    """
    from transformers import GenerationConfig

    config = settings.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise TypeError(
            f"generation_config: got {type(config).__name__}, wanted transformers' GenerationConfig"
        )
    known = _known() | set(also)
    for name, value in settings.items():
        if name not in known and name not in REFUSED:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; perhaps {close[0]}" if close else ""
            raise TypeError(
                f"{name}: got {value!r:.80}, and no setting has this name, wanted one of "
                f"transformers' generate(){hint}"
            )
    for name in _LISTS:
        if not isinstance(settings.get(name, ()), list | tuple | None):
            raise TypeError(f"{name}: got {type(settings[name]).__name__}, wanted a list")
    if settings.get("max_length") is not None and settings.get("max_new_tokens") is not None:
        raise ValueError("max_length: got it beside max_new_tokens, wanted one of them")
    given = {} if config is None else vars(config)
    for source in (given, settings):
        for name, (neutral, why) in REFUSED.items():
            value = source.get(name)
            if not any(value is one or (type(value) is type(one) and value == one)
                       for one in neutral):  # fmt: skip
                shown = type(value).__name__ if isinstance(value, Tensor) else f"{value!r:.80}"
                raise ValueError(f"{name}: got {shown}, which cannot be, {why}; wanted it left out")
        for name, least in _COUNTS.items():
            if source.get(name) is not None:
                check_count(name, source[name], least=least)


def check_streamer(settings: Mapping[str, Any], prompts: int) -> None:
    """A streamer gets one answer; ValueError for more of them."""
    if settings.get("streamer") is None:
        return
    config = settings.get("generation_config")
    counts = {"questions": prompts}
    for name in ("num_beams", "num_return_sequences"):
        counts[name] = settings.get(name) or getattr(config, name, None) or 1
    for name, count in counts.items():
        if count > 1:
            raise ValueError(f"streamer: got {name} of {count}, wanted 1, as it gets one answer")


def check_asking(
    host: Any,
    questions: Sequence[str],
    max_tokens: int | None,
    history: Sequence[tuple[str, str]],
    system: str | None,
    generate: dict[str, Any],
) -> None:
    """TypeError or ValueError naming the setting of a question, what came and what was wanted.

    Args:
        generate: settings of generate(). The others: see `bvllm_adapters.ask`.
    """
    takes = inspect.signature(host.answers).parameters
    for question in questions:
        if not isinstance(question, str):
            raise ValueError(f"question: got {type(question).__name__}, wanted a string")
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)
    check_settings(generate, also={*takes} - {"model", "processor", "questions", "tokens"})
    check_streamer(generate, len(questions))
    if isinstance(history, str) or not isinstance(history, Sequence):
        raise TypeError(f"history: got {type(history).__name__}, wanted (question, answer) pairs")
    for i, turn in enumerate(history):
        pair = isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2
        if not pair or not all(isinstance(text, str) for text in turn):
            raise TypeError(f"history[{i}]: got {turn!r:.80}, wanted (question, answer) as texts")
    if system is not None and not isinstance(system, str):
        raise TypeError(f"system: got {type(system).__name__}, wanted a text")
    for name, value in (("history", history or None), ("system", system)):
        if value is not None and name not in takes:
            raise ValueError(
                f"{name}: got {value!r:.80}, wanted none, as {type(host).__name__} has no place "
                "for it in its prompt"
            )


def completed(settings: Mapping[str, Any], own: Any) -> dict[str, Any]:
    """Settings with what they leave to us.

    An answer is as long as the model's own say, or NEW_TOKENS, where neither the call nor a
    `generation_config` that came with it says; scores and the like, where they are wanted, come
    back in a ModelOutput.

    Args:
        own: the model's generation_config; None: it has none.
    """
    given = settings.get("generation_config")

    def said(*names: str) -> bool:
        return any(settings.get(name) or getattr(given, name, None) for name in names)

    whole = dict(settings)
    if not said("max_new_tokens", "max_length"):
        whole["max_new_tokens"] = getattr(own, "max_new_tokens", None) or NEW_TOKENS
    if said(*_OUTPUTS):
        whole["return_dict_in_generate"] = True
    return whole


def settled(
    own: Any,
    settings: Mapping[str, Any],
    *,
    prompt_length: int,
    answers: bool = True,
    tokenizer: Any = None,
    **by_host: Any,
) -> dict[str, Any]:
    """Arguments of generate() for prompts that are embeddings.

    What the call says goes before the `generation_config` that came with it, that before
    `by_host`, and that before `own`.

    Args:
        own: the model's generation_config. settings: of the call, checked by `check_settings`.
        prompt_length: ids of the longest prompt, each visual input one; `max_length` and
            `min_length` count them and the new ones.
        answers: whether the length of an answer is that of `completed`, and not generate()'s,
            where nobody says.
        tokenizer: of transformers, which `stop_strings` need; None: the host has none.

    Raises:
        ValueError: a max_length that leaves no room, or stop_strings without a tokenizer.
    """
    from transformers import GenerationConfig

    settings = completed(settings, own) if answers else settings
    said = {name: value for name, value in settings.items() if value is not None}
    given = said.pop("generation_config", None)
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    least = _first(_least_tokens, (said, vars(config)), prompt_length)
    most = _first(_new_tokens, (said, vars(config), vars(own)), prompt_length)
    for name in ("max_length", "min_length"):
        said.pop(name, None)
        setattr(config, name, None)
    said |= {"max_new_tokens": most, "min_new_tokens": least}
    for defaults in (by_host, own.to_dict()):
        for name, value in defaults.items():
            if name.startswith("_") or name in ("max_length", "min_length", "transformers_version"):
                continue
            if getattr(config, name, None) is None:
                setattr(config, name, value)
    rest: dict[str, Any] = config.update(**said)  # gives back what is no field of it
    if config.stop_strings:
        rest.setdefault("tokenizer", tokenizer)
        if rest["tokenizer"] is None:
            raise ValueError(
                f"stop_strings: got {config.stop_strings!r}, and this host's tokenizer is none of "
                "transformers, which they need; wanted stopping_criteria"
            )
    return {"generation_config": config, **rest}


def of_prompt(output: Any, prompt: int, prompts: int) -> Any:
    """What in generate()'s output is of one prompt of a batch; without the cache, which is of all.

    Args:
        output: a ModelOutput; its tensors have as many rows, or a multiple, as there are `prompts`.
    """

    def part(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim():
            each = len(value) // prompts
            return value[prompt * each : (prompt + 1) * each]
        return tuple(map(part, value)) if isinstance(value, tuple | list) else value

    fields = {name: part(value) for name, value in output.items() if name not in CACHE_NAMES}
    beams = fields.get("beam_indices")
    told = fields.get("scores") or fields.get("logits")
    if beams is not None and told:  # they count the beams of all prompts
        fields["beam_indices"] = torch.where(beams < 0, beams, beams - prompt * len(told[0]))
    return type(output)(**fields)


def _known() -> set[str]:
    """Names that generate() of the installed transformers has a use for."""
    from transformers import GenerationConfig, GenerationMixin

    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    return (arguments | fields | {"tokenizer"}) - {"transformers_version"}


def _first(
    tokens: Callable[[Mapping[str, Any], int], int | None],
    sources: Sequence[Mapping[str, Any]],
    prompt_length: int,
) -> int | None:
    """What the first of the sources says that says anything."""
    found = (tokens(source, prompt_length) for source in sources)
    return next((count for count in found if count is not None), None)


def _new_tokens(source: Mapping[str, Any], prompt_length: int) -> int | None:
    new, whole = source.get("max_new_tokens"), source.get("max_length")
    if new is not None or whole is None:
        return new
    if whole <= prompt_length:
        raise ValueError(
            f"max_length: got {whole}, wanted more than the {prompt_length} ids of the prompt, "
            "or max_new_tokens"
        )
    return int(whole) - prompt_length


def _least_tokens(source: Mapping[str, Any], prompt_length: int) -> int | None:
    new, whole = source.get("min_new_tokens"), source.get("min_length")
    if new is not None or whole is None:
        return new
    return max(0, int(whole) - prompt_length)
