"""A task's `generation_kwargs` as settings of generate(), and where its answers stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bvllm_adapters.hosts.generation import REFUSED

# Settings of sampling, which greedy decoding has no use for: transformers warns of each.
_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff")
# What lmms-eval puts where a task says nothing: it parts few-shot examples, and would cut an answer
# of several paragraphs. lmms-eval's own chat models do not stop there either.
_NOBODYS_STOP = "\n\n"


@dataclass(frozen=True)
class Settings:
    """How answers to a request are generated.

    Args:
        generate: settings of transformers' generate(). until: an answer ends before these.
        left_out: names that nobody but the models of other projects has a use for.
    """

    generate: Mapping[str, Any] = field(default_factory=dict)
    until: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Of `generation_kwargs`; greedy unless they say otherwise, as lmms-eval's models are."""
        said = {name: value for name, value in given.items() if value is not None}
        until = said.pop("until", ())
        until = (until,) if isinstance(until, str) else tuple(until)
        if "max_gen_toks" in said:
            said.setdefault("max_new_tokens", said.pop("max_gen_toks"))
        warm = said.get("temperature", 1) > 0
        said["do_sample"] = warm and bool(said.get("do_sample", "temperature" in said))
        if not said["do_sample"]:
            for name in _OF_SAMPLING:
                said.pop(name, None)
        known = _known()
        left_out = tuple(name for name in said if name not in known)
        generate = {name: value for name, value in said.items() if name in known}
        stops = tuple(text for text in until if text and text != _NOBODYS_STOP)
        return cls(generate, stops, left_out)

    @property
    def key(self) -> str:
        """The same for settings that one batch may share."""
        return repr((sorted(self.generate.items()), self.until))

    def cut(self, text: str) -> str:
        """An answer up to where it is to stop."""
        for stop in self.until:
            text = text.split(stop, 1)[0]
        return text.strip()


def _known() -> set[str]:
    """What generate() takes, and what `bvllm_adapters.ask` refuses with a reason."""
    from transformers import GenerationConfig

    return {name for name in vars(GenerationConfig()) if not name.startswith("_")} | REFUSED.keys()
