"""The model that lmms-eval runs: any host under a budget."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from bvllm_adapters.checks import check_count
from bvllm_adapters.cli.asked_model import asked_model
from bvllm_adapters.cli.placement import DTYPES, device_of, dtype_of
from bvllm_adapters.cli.selecting import asked_selector
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_lmms_eval.answering import Answering
from bvllm_lmms_eval.asked import Asked
from bvllm_lmms_eval.batches import Request, by_video
from bvllm_lmms_eval.settings import Settings
from bvllm_lmms_eval.spent import Spent


class Bvllm(lmms):  # type: ignore[misc]
    """Asked by a task's text and what its `doc_to_visual` shows.

    Args, each a `name=value` of --model_args:
        pretrained: folder or hub id; "demo": the small model that ships.
        max_tokens: visual tokens that a prompt may have; None: what the model or adapter says.
        selector, scout: see `bvllm ask --help`. adapter: folder or hub id of a trained one.
        untrained: whether a model that needs an adapter is asked without, by random weights.
        num_frames, tokens_per_frame: in place of what follows from max_tokens, without an adapter.
        fps: frames read a second; 0: as many as a file has. max_frames: at most, of a video.
        system: what conversations begin with, in place of the host's own words.
        dtype: float32, float16 or bfloat16; None: as fits the device.
        device, batch_size: also --device and --batch_size. max_batch_size: not used.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "demo",
        max_tokens: int | None = None,
        selector: str | None = None,
        scout: str | None = None,
        adapter: str | None = None,
        untrained: bool = False,
        num_frames: int | None = None,
        tokens_per_frame: int | None = None,
        fps: float = 1.0,
        max_frames: int | None = None,
        system: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if max_tokens is not None:
            check_count("max_tokens", max_tokens)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, wanted one of {[*DTYPES]}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size: got {batch_size!r}, wanted a number of prompts")
        self.device = device_of(_of_this_process(device))
        numbers = dtype_of(dtype, self.device)
        given = {
            "max_tokens": max_tokens,
            "num_frames": num_frames,
            "tokens_per_frame": tokens_per_frame,
        }
        settings: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        if selector is not None or scout is not None:
            settings["selector"] = asked_selector(selector, scout, self.device, numbers)
        source = None if pretrained == "demo" else str(pretrained)
        model, processor = asked_model(
            source, adapter, untrained=untrained, dtype=numbers, device=self.device, **settings
        )
        config = tokenizer_of(model).config
        for name, value in settings.items():  # only a new tokenizer takes these
            if name in ("num_frames", "tokens_per_frame") and getattr(config, name) != value:
                raise ValueError(
                    f"{name}: got {value} for a model or adapter that was made with "
                    f"{getattr(config, name)}, wanted it left out"
                )
        self.answering = Answering(
            model,
            processor,
            max_tokens=max_tokens,
            system=system,
            reading={"fps": fps or None, "max_frames": max_frames},
            batch_size=int(batch_size),
            tell=logger.warning,
            progress=lambda steps: tqdm(steps, desc="bvllm", disable=self.rank != 0),
        )

    def clean(self) -> None:
        """Lets go of the model, as lmms-eval asks before a judge may need its place."""
        del self.answering
        super().clean()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each, in their order; each video is opened once."""
        texts = self.answering.answers(by_video([self._asked(*one.args) for one in requests]))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", self._known_by(*request.args), text)
        self._tell_spent()
        return texts

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of all rounds of each; see `Answering.rounds`."""
        said = []
        for request in tqdm(requests, desc="bvllm, in rounds", disable=self.rank != 0):
            settings, turn = self._rounds(*request.args)
            said.append(self.answering.rounds(turn, Settings.of(settings)))
        self._tell_spent()
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """The loss of each continuation, and whether the model would have said it itself.

        The loss and no log-probability, though the name says so: lmms-eval's own models return it,
        and its metrics of multiple choice take the least. In a GenerationResult, as lmms-eval
        0.7.3 makes a text of any other pair.
        """
        asked = by_video([self._continued(*one.args) for one in requests])
        found = self.answering.likelihoods(asked)
        self._tell_spent()
        return [GenerationResult((one.loss, one.greedy)) for one in found]

    # What the arguments of a request are, in the order that lmms-eval gives them to this class.

    def _asked(
        self, text: str, settings: Any, to_visual: Any, number: int, task: str, split: str
    ) -> Request:
        document = partial(self._document, task, split, number)
        return Request(
            lambda: Asked.of_text(text, to_visual(document())),
            (task, split, number),
            Settings.of(settings),
        )

    def _known_by(self, text: str, settings: Any, *of: Any) -> tuple[str, Any]:
        return text, settings

    def _rounds(
        self, text: str, settings: Any, to_visual: Any, to_text: Any,
        number: int, task: str, split: str,
    ) -> tuple[Any, Any]:  # fmt: skip
        document = self._document(task, split, number)

        def turn(**earlier: Any) -> tuple[Asked | None, Any, Any]:
            if not earlier:
                return Asked.of_text(text, to_visual(document)), None, None
            visuals, said, ended, answers, about = to_text(document, **earlier)
            return (None if ended else Asked.of_text(said, visuals)), answers, about

        return settings, turn

    def _continued(self, text: str, answer: Any, *of: Any) -> Request:
        if not of:  # of an answer alone, for mutual information
            return Request(lambda: Asked((), text), ("", "", text), continuation=answer)
        to_visual, number, task, split = of
        document = partial(self._document, task, split, number)
        return Request(
            lambda: Asked.of_text(text, to_visual(document())),
            (task, split, number),
            continuation=answer(document()) if callable(answer) else answer,
        )

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]

    def _tell_spent(self) -> None:
        logger.info(f"bvllm: {self.answering.spent}")
        self.answering.spent = Spent()


class BvllmChat(Bvllm):
    """Asked by a task's chat messages. lmms-eval gives these to tasks that generate alone."""

    is_simple = False

    def _asked(  # type: ignore[override]
        self, text: str, to_messages: Any, settings: Any, number: int, task: str, split: str
    ) -> Request:
        document = partial(self._document, task, split, number)
        return Request(
            lambda: Asked.of_messages(to_messages(document())),
            (task, split, number),
            Settings.of(settings),
        )

    def _known_by(self, text: str, to_messages: Any, *of: Any) -> tuple[str, Any]:
        return text, of[0]

    def _rounds(  # type: ignore[override]
        self, text: str, to_messages: Any, settings: Any, number: int, task: str, split: str
    ) -> tuple[Any, Any]:
        document = self._document(task, split, number)

        def turn(**earlier: Any) -> tuple[Asked | None, Any, Any]:
            if not earlier:
                return Asked.of_messages(to_messages(document)), None, None
            made = to_messages(document, **earlier)
            if not isinstance(made, tuple):  # a task of one round
                return None, None, None
            messages, ended, answers, about = made
            return (None if ended else Asked.of_messages(messages)), answers, about

        return settings, turn


def _of_this_process(device: str | None) -> str | None:
    """One GPU a process, where several processes were launched and nobody says which."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or device not in (None, "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{rank}"
