"""Answers to many requests: videos opened once each, questions in batches, every way of asking."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from bvllm_adapters.conversation import OpenVideo, ask_batch, open_video
from bvllm_adapters.evaluation.likelihood import Likelihood, likelihood_of, saying, token_ids
from bvllm_lmms_eval.asked import Asked, Visual, one_video
from bvllm_lmms_eval.batches import Request, batches
from bvllm_lmms_eval.own_way import own_answer
from bvllm_lmms_eval.settings import Settings
from bvllm_lmms_eval.spent import Spent
from bvllm_lmms_eval.stops import Stops

Said = tuple[str, Any]  # an answer, and what generate() returned of it
Turn = Callable[..., tuple[Asked | None, Sequence[str] | None, Any]]
"""Called with what was said so far: the next prompt of a task in rounds, or None and all answers at
the end; and what it wants to know again at the next call."""
Result = TypeVar("Result")

log = logging.getLogger("bvllm_adapters")


class Answering:
    """One model under a budget, and how it is asked.

    Args:
        model, processor: wrapped or native, and that of its host.
        max_tokens: see `bvllm_adapters.ask`. system: for prompts that bring none.
        reading: fps and max_frames, see `read_video`. batch_size: prompts at a time.
        tell: what is said once a run goes there. progress: passes batches on while it tells.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_tokens: int | None = None,
        system: str | None = None,
        reading: dict[str, Any] | None = None,
        batch_size: int = 1,
        tell: Callable[[str], None] = log.warning,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> None:
        self.model, self.processor = model, processor
        self.max_tokens, self.system, self.reading = max_tokens, system, reading or {}
        self.batch_size, self.progress = batch_size, progress
        self.spent = Spent()
        self._tell, self._told = tell, set[str]()

    def answers(self, requests: Sequence[Request]) -> list[str]:
        """What the model says to each, in their order."""

        def say(
            batch: list[Request], prompts: list[Asked], videos: list[OpenVideo | None]
        ) -> list[str]:
            settings = batch[0].settings
            said = self._said(prompts, videos, lambda places: self._generate(settings))
            return [settings.cut(text) for text, _ in said]

        return self._in_batches(requests, say)

    def likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        """How likely the continuation of each is to the model.

        Its place behind the prompt is the chat format's, so no space leads it.

        Raises:
            ValueError: see `token_ids` and `likelihood_of`.
        """
        tokenizer = self.processor.tokenizer

        def find(
            batch: list[Request], prompts: list[Asked], videos: list[OpenVideo | None]
        ) -> list[Likelihood]:
            texts = [request.continuation.strip() for request in batch]
            rows = [token_ids(tokenizer, text) for text in texts]
            said = self._said(prompts, videos, lambda places: saying([rows[i] for i in places]))
            return [
                likelihood_of(ids, out.logits, text)
                for ids, (_, out), text in zip(rows, said, texts, strict=True)
            ]

        return self._in_batches(requests, find)

    def rounds(self, turn: Turn, settings: Settings) -> list[str]:
        """The answers of a conversation that a task leads, a prompt at a time.

        A round that shows what the one before did, or nothing, is about the video that is open. One
        that shows nothing goes on with the conversation; one that shows something begins anew, as
        lmms-eval's own models do.
        """
        answers: list[str] = []
        history: tuple[tuple[str, str], ...] = ()
        visuals: tuple[Visual, ...] = ()
        video = None
        asked, _, about = turn()
        while asked is not None:
            if asked.visuals:
                history = asked.history
                if asked.visuals != visuals:
                    visuals, video = asked.visuals, self._open(asked)
            now = replace(asked, visuals=visuals, history=history if visuals else asked.history)
            ((text, _),) = self._said([now], [video], lambda places: self._generate(settings))
            answers.append(settings.cut(text))
            history += ((asked.text, answers[-1]),)
            asked, final, about = turn(
                round_idx=len(answers), previous_output=[*answers], previous_round_info=about
            )
            if asked is None and final is not None:
                return [*final]
        return answers

    def _in_batches(
        self,
        requests: Sequence[Request],
        way: Callable[[list[Request], list[Asked], list[OpenVideo | None]], list[Result]],
    ) -> list[Result]:
        found: dict[int, Result] = {}
        opened: dict[Hashable, OpenVideo | None] = {}
        for places in self.progress(list(batches(requests, self.batch_size))):
            batch = [requests[place] for place in places]
            prompts = [request.resolve() for request in batch]
            before, opened = opened, {}  # those of this batch alone are held
            for request, asked in zip(batch, prompts, strict=True):
                if request.key in before:
                    opened[request.key] = before[request.key]
                elif request.key not in opened:
                    opened[request.key] = self._open(asked)
            videos = [opened[request.key] for request in batch]
            found.update(zip(places, way(batch, prompts, videos), strict=True))
        return [found[place] for place in range(len(requests))]

    def _open(self, asked: Asked) -> OpenVideo | None:
        """What a prompt shows, as the model sees it; None: there is nothing, or several things."""
        shown = one_video(asked.visuals)
        if shown is None:
            return None
        if len(asked.visuals) > 1:
            self._once("several images of one size in a prompt are shown as the frames of a video")
        self.spent.opened += 1
        return open_video(
            self.model, shown.source,
            processor=self.processor, start=shown.start, end=shown.end, **self.reading,
        )  # fmt: skip

    def _said(
        self,
        prompts: Sequence[Asked],
        videos: Sequence[OpenVideo | None],
        settings: Callable[[list[int]], dict[str, Any]],
    ) -> list[Said]:
        """What the model says to each; `settings` gives those of generate(), for these places."""
        said: dict[int, Said] = {}
        together: dict[str | None, list[int]] = {}
        for place, (asked, video) in enumerate(zip(prompts, videos, strict=True)):
            system = self.system if asked.system is None else asked.system
            if video is not None:
                together.setdefault(system, []).append(place)
                continue
            how = settings([place])
            how.pop("stopping_criteria", None)  # it would read the prompt; the answer is cut later
            prompt = replace(asked, system=system)
            said[place] = own_answer(self.model, self.processor, prompt, how)
            self.spent.apart += 1
        for system, places in together.items():
            items = [(videos[i], prompts[i].text, prompts[i].history) for i in places]
            answers = ask_batch(
                items,  # type: ignore[arg-type]
                batch_size=len(items),
                system=system,
                max_tokens=self.max_tokens,
                **settings(places),
            )
            for place, answer in zip(places, answers, strict=True):
                said[place] = answer.text, answer.generated
                self.spent.add(answer.trace)
        return [said[place] for place in range(len(prompts))]

    def _generate(self, settings: Settings) -> dict[str, Any]:
        """Settings of generate()."""
        for name in settings.left_out:
            self._once(f"generation_kwargs: {name} is left out, as generate() knows it not")
        how = dict(settings.generate)
        if settings.until:
            how["stopping_criteria"] = [Stops(self.processor.tokenizer, settings.until)]
        return how

    def _once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._tell(message)
