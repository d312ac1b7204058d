"""Hosts that are broken in one way each: of a third party's, and of transformers' models.

A fault is planted into a good host; `acme` and `qwen` give it as `certify` takes it.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples" / "third_party_host"))

from acme_host.host import AcmeHost, Overrides  # noqa: E402

import bvllm_adapters.balanced_tokenizer as composed  # noqa: E402
import bvllm_adapters.certify.of_keeping as keeping  # noqa: E402
from bvllm_adapters.budget_merger import BudgetMerger  # noqa: E402
from bvllm_adapters.features import FrameFeatures, Selection  # noqa: E402
from bvllm_adapters.frame_selector import FrameSelector  # noqa: E402

Patch = pytest.MonkeyPatch
ACME: dict[str, tuple[str, Callable[[Patch], Any]]] = {}
QWEN: dict[str, tuple[str, Callable[[Patch], Any]]] = {}


def fault(check: str, among: dict[str, Any] = ACME) -> Callable[[Any], Any]:
    """Plants what this check must find; gives a host, or None where it patched its parts."""

    def keep(plant: Callable[[Patch], Any]) -> Callable[[Patch], Any]:
        among[plant.__name__] = check, plant
        return plant

    return keep


def install(monkeypatch: Patch, host: Any) -> str:
    """A host by the name that `certify` finds it by."""
    monkeypatch.setitem(sys.modules, "planted", SimpleNamespace(HOST=host))  # type: ignore[arg-type]
    return "planted:HOST"


def host(**methods: Any) -> Any:
    return type("Planted", (AcmeHost,), methods)()


def overriding(**methods: Any) -> Any:
    return host(overrides=type("Planted", (Overrides,), methods))


def looking(change: Callable[[Any, FrameFeatures], FrameFeatures]) -> Any:
    """A host whose features are changed; its own forward sees as ever."""

    def look(self: Any, model: Any, pixels: Any) -> FrameFeatures:
        return change(model, AcmeHost.look(self, model, pixels))

    return host(look=look)


def answering(change: Callable[..., Any]) -> Any:
    """A host whose answers are of changed tokens: (host, tokens) -> tokens."""

    def answers(
        self: Any, model: Any, processor: Any, questions: Any, tokens: Any, **generate: Any
    ) -> Any:
        tokens = [change(self, each) for each in tokens]
        return AcmeHost.answers(self, model, processor, questions, tokens, **generate)

    return host(answers=answers)


# --- loading, wrapping ---------------------------------------------------------------------------


@fault("load")
def a_processor_that_cannot_be_saved(monkeypatch: Patch) -> Any:
    processor = SimpleNamespace(encode=None, decode=None, pixels=None)
    return host(processor=lambda self, folder: processor)


@fault("wrap")
def a_tokenizer_of_another_dtype(monkeypatch: Patch) -> Any:
    import bvllm_adapters.certify.subject as subject

    wrap = subject.wrap

    def wider(model: Any, **how: Any) -> Any:
        wrap(model, **how).balanced_tokenizer.double()
        return model

    monkeypatch.setattr(subject, "wrap", wider)


@fault("unwrap")
def unwrap_leaves_a_hook(monkeypatch: Patch) -> Any:
    def look(self: Any, model: Any, pixels: Any) -> FrameFeatures:
        model.vision_tower.register_forward_hook(lambda *_: None)
        return AcmeHost.look(self, model, pixels)

    return host(look=look)


@fault("unwrap")
def wrapped_weights_are_changed(monkeypatch: Patch) -> Any:
    def changed(model: Any, seen: FrameFeatures) -> FrameFeatures:
        model.projector.bias.data += 1e-3
        return seen

    return looking(changed)


# --- features and tokens -------------------------------------------------------------------------


@fault("look")
def black_frames_look_like_others(monkeypatch: Patch) -> Any:
    return looking(
        lambda model, seen: FrameFeatures(torch.ones_like(seen.cls), torch.ones_like(seen.patches))
    )


def merging(monkeypatch: Patch, change: Callable[..., Any]) -> None:
    """A merger whose results are changed: (its forward, itself, tokens, shares, selection)."""
    forward = BudgetMerger.forward
    monkeypatch.setattr(
        BudgetMerger,
        "forward",
        lambda self, tokens, shares, selection=None: change(
            forward, self, tokens, shares, selection
        ),
    )


@fault("budget")
def a_budget_off_by_one(monkeypatch: Patch) -> Any:
    fit = composed.BalancedTokenizer.fit

    def more(
        self: Any, frames: Any, selections: Any, prompts: Any, budgets: Any, *more: Any
    ) -> Any:
        budgets = {prompt: most and most + 1 for prompt, most in budgets.items()}
        return fit(self, frames, selections, prompts, budgets, *more)

    monkeypatch.setattr(composed.BalancedTokenizer, "fit", more)


@fault("budget")
def a_budget_that_is_wasted(monkeypatch: Patch) -> Any:
    fit = composed.BalancedTokenizer.fit

    def less(
        self: Any, frames: Any, selections: Any, prompts: Any, budgets: Any, *more: Any
    ) -> Any:
        budgets = {prompt: most and max(most - 1, 1) for prompt, most in budgets.items()}
        return fit(self, frames, selections, prompts, budgets, *more)

    monkeypatch.setattr(composed.BalancedTokenizer, "fit", less)


@fault("no budget")
def tokens_merged_without_need(monkeypatch: Patch) -> Any:
    """Where a budget is just met."""
    fit = composed.BalancedTokenizer.fit

    def less(
        self: Any, frames: Any, selections: Any, prompts: Any, budgets: Any, *more: Any
    ) -> Any:
        budgets = {p: most - 1 if most and most < 1000 else most for p, most in budgets.items()}
        return fit(self, frames, selections, prompts, budgets, *more)

    monkeypatch.setattr(composed.BalancedTokenizer, "fit", less)


@fault("order")
def time_order_is_lost(monkeypatch: Patch) -> Any:
    def flipped(forward: Any, self: Any, tokens: Any, shares: Any, selection: Any) -> Any:
        made = forward(self, tokens, shares, selection)
        parts = {name: getattr(made, name).flip(0) for name in ("tokens", "slot", "size", "place")}
        return replace(made, **parts)

    merging(monkeypatch, flipped)


@fault("order")
def order_within_a_frame_is_lost(monkeypatch: Patch) -> Any:
    def turned(forward: Any, self: Any, tokens: Any, shares: Any, selection: Any) -> Any:
        made = forward(self, tokens, shares, selection)
        return replace(made, place=-made.place + made.place.max())

    merging(monkeypatch, turned)


@fault("selection")
def merging_loses_mass(monkeypatch: Patch) -> Any:
    def unweighted(forward: Any, self: Any, tokens: Any, shares: Any, selection: Any) -> Any:
        made = forward(self, tokens, shares, selection)
        return made.with_tokens(made.tokens / made.size[:, None])

    merging(monkeypatch, unweighted)


@fault("selection")
def a_choice_is_lost(monkeypatch: Patch) -> Any:
    select = composed.BalancedTokenizer.select
    monkeypatch.setattr(
        composed.BalancedTokenizer, "select", lambda self, *args: select(self, *args)[:-1]
    )
    getitem = Selection.__getitem__
    monkeypatch.setattr(
        Selection,
        "__getitem__",
        lambda self, rows: getitem(
            self, torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        ),
    )


@fault("deterministic")
def noise_in_evaluation(monkeypatch: Patch) -> Any:
    return looking(
        lambda model, seen: FrameFeatures(
            seen.cls + 1e-3 * torch.randn_like(seen.cls), seen.patches
        )
    )


@fault("deterministic")
def asking_leaves_the_model_in_eval(monkeypatch: Patch) -> Any:
    def answers(self: Any, model: Any, *args: Any, **generate: Any) -> Any:
        import bvllm_adapters.hosts.evaluating as evaluating

        for run in evaluating._runs.values():
            run.training.clear()
        return AcmeHost.answers(self, model, *args, **generate)

    return host(answers=answers)


@fault("chunks")
def a_frame_depends_on_its_chunk(monkeypatch: Patch) -> Any:
    return looking(
        lambda model, seen: FrameFeatures(
            seen.cls, seen.patches - 0.1 * seen.patches.mean(dim=0, keepdim=True)
        )
    )


@fault("batch of videos")
def a_video_leaks_into_its_neighbour(monkeypatch: Patch) -> Any:
    project = composed.BalancedTokenizer.project

    def leaking(self: Any, tokens: Any) -> Any:
        mean = torch.cat([video.tokens for video in tokens]).mean(dim=0)
        return project(self, [video.with_tokens(video.tokens + mean) for video in tokens])

    monkeypatch.setattr(composed.BalancedTokenizer, "project", leaking)


@fault("permuted frames")
def a_score_that_knows_its_place(monkeypatch: Patch) -> Any:
    scores = FrameSelector.scores

    def placed(self: Any, cls: Any, *args: Any, **how: Any) -> Any:
        return scores(self, cls, *args, **how) + 0.01 * torch.arange(len(cls))

    monkeypatch.setattr(FrameSelector, "scores", placed)


@fault("pictures")
def a_picture_is_shown_to_the_selector(monkeypatch: Patch) -> Any:
    def select(self: Any, video: Any, text: Any, *args: Any) -> Any:
        return self.frame_selector(video.cls.to(self.dtype), text, seconds=video.seconds)

    monkeypatch.setattr(composed.BalancedTokenizer, "select", select)


@fault("refusals")
def pixels_of_nan_are_taken(monkeypatch: Patch) -> Any:
    def look(self: Any, model: Any, pixels: Any) -> FrameFeatures:
        return AcmeHost.look(self, model, pixels.nan_to_num())

    return host(look=look)


@fault("precision")
def sizes_in_the_models_dtype(monkeypatch: Patch) -> Any:
    def halved(forward: Any, self: Any, tokens: Any, shares: Any, selection: Any) -> Any:
        made = forward(self, tokens, shares, selection)
        return replace(made, size=made.size.to(tokens.dtype))

    merging(monkeypatch, halved)


# --- answers -------------------------------------------------------------------------------------


@fault("ask")
def answers_lose_the_order(monkeypatch: Patch) -> Any:
    return answering(lambda self, visual: visual.with_tokens(visual.tokens.flip(0)))


@fault("ask")
def answers_show_a_token_more(monkeypatch: Patch) -> Any:
    return answering(
        lambda self, visual: visual.with_tokens(torch.cat([visual.tokens, visual.tokens[:1] * 2]))
    )


@fault("hears the video")
def answers_do_not_look(monkeypatch: Patch) -> Any:
    return answering(lambda self, visual: visual.with_tokens(torch.ones(3, visual.tokens.shape[1])))


@fault("several answers")
def a_limit_of_words_is_dropped(monkeypatch: Patch) -> Any:
    def answers(self: Any, *args: Any, max_new_tokens: int = 0, **generate: Any) -> Any:
        return AcmeHost.answers(self, *args, max_new_tokens=7, **generate)

    return host(answers=answers)


@fault("several answers")
def settings_are_dropped(monkeypatch: Patch) -> Any:
    def answers(
        self: Any, *args: Any, max_new_tokens: int = 0, logits_processor: Any = (), **others: Any
    ) -> Any:
        return AcmeHost.answers(
            self, *args, max_new_tokens=max_new_tokens, logits_processor=logits_processor
        )

    return host(answers=answers)


@fault("batch")
def padding_is_read(monkeypatch: Patch) -> Any:
    def answers(
        self: Any, model: Any, processor: Any, questions: Any, tokens: Any, **generate: Any
    ) -> Any:
        longest = max(map(len, questions))
        questions = [question.ljust(longest, "?") for question in questions]
        return AcmeHost.answers(self, model, processor, questions, tokens, **generate)

    return host(answers=answers)


@fault("two threads")
def a_host_that_remembers(monkeypatch: Patch) -> Any:
    meeting = threading.Event()

    def remembered(self: Any, visual: Any) -> Any:
        self.last = visual
        meeting.wait(timeout=0.02)
        time.sleep(0.01)
        return self.last

    return answering(remembered)


# --- the model's own calls -----------------------------------------------------------------------


def making(change: Callable[[Any, Any], Any]) -> Any:
    """A host whose model's own visual tokens are changed: (model, tokens) -> tokens."""

    def video_tokens(self: Any, pixels: Any, question_ids: Any) -> Any:
        return change(self, Overrides.video_tokens(self, pixels, question_ids))

    return overriding(video_tokens=video_tokens)


@fault("forward")
def forward_is_over_the_budget(monkeypatch: Patch) -> Any:
    return making(lambda model, tokens: torch.cat([tokens, tokens.mean(dim=0, keepdim=True)]))


@fault("forward")
def forward_is_not_wrapped(monkeypatch: Patch) -> Any:
    return host(overrides=type("Nothing", (), {}))


@fault("forward")
def forward_wastes_the_budget(monkeypatch: Patch) -> Any:
    def video_tokens(self: Any, pixels: Any, question_ids: Any) -> Any:
        tokenizer = self.balanced_tokenizer
        config = tokenizer.config
        tokenizer.config = replace(config, max_tokens=max((config.max_tokens or 9) - 2, 1))
        try:
            return Overrides.video_tokens(self, pixels, question_ids)
        finally:
            tokenizer.config = config

    return overriding(video_tokens=video_tokens)


@fault("forward, plenty")
def a_budget_changes_what_it_does_not_bind(monkeypatch: Patch) -> Any:
    return making(
        lambda model, tokens: (
            tokens * 1.001 if model.balanced_tokenizer.config.max_tokens else tokens
        )
    )


@fault("backward")
def gradients_are_cut(monkeypatch: Patch) -> Any:
    return making(lambda model, tokens: tokens.detach())


@fault("text alone")
def text_is_touched(monkeypatch: Patch) -> Any:
    def forward(self: Any, **kwargs: Any) -> Any:
        out = self._bvllm_original.forward(self, **kwargs)
        out.logits = out.logits + 1e-6
        return out

    return overriding(forward=forward)


# --- saving and copying --------------------------------------------------------------------------


@fault("adapter")
def saving_rounds(monkeypatch: Patch) -> Any:
    save = keeping.save_adapter

    def rounded(model: Any, folder: Any) -> None:
        twin = copy.deepcopy(model)
        twin.balanced_tokenizer.bfloat16().float()
        save(twin, folder)

    monkeypatch.setattr(keeping, "save_adapter", rounded)


@fault("adapter")
def other_weights_are_not_noticed(monkeypatch: Patch) -> Any:
    wrap = keeping.wrap
    monkeypatch.setattr(
        keeping, "wrap", lambda model, **how: wrap(model, **{**how, "strict": False})
    )


@fault("save and reload")
def saving_changes_the_live_model(monkeypatch: Patch) -> Any:
    def save_pretrained(self: Any, folder: Any, **how: Any) -> None:
        self.projector.half().float()
        self._bvllm_original.save_pretrained(self, folder, **how)

    return overriding(save_pretrained=save_pretrained)


@fault("save and reload")
def loading_forgets_a_weight(monkeypatch: Patch) -> Any:
    def load(self: Any, folder: Path, *, dtype: torch.dtype) -> Any:
        model = AcmeHost.load(self, folder, dtype=dtype)
        nn.init.zeros_(model.get_input_embeddings().weight)
        return model

    return host(load=load)


@fault("deep copy")
def a_copy_shares_weights(monkeypatch: Patch) -> Any:
    def __deepcopy__(self: Any, memo: Any) -> Any:
        shared = self.language_model
        memo[id(shared)] = shared
        twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    # Wrapped comes before what a host overrides, so it is planted there.
    import bvllm_adapters.hosts.wrapped as wrapped

    monkeypatch.setattr(wrapped.Wrapped, "__deepcopy__", __deepcopy__)


class Unpicklable(AcmeHost):
    """Leaves something on the model that cannot be pickled."""

    def look(self, model: Any, pixels: Any) -> FrameFeatures:
        if hasattr(model, "balanced_tokenizer"):
            model.balanced_tokenizer.last = lambda: pixels
        return super().look(model, pixels)


@fault("pickle")
def something_that_cannot_be_pickled(monkeypatch: Patch) -> Any:
    return Unpicklable()


# --- transformers' models ------------------------------------------------------------------------


@fault("keeps all", QWEN)
def a_token_is_lost_where_all_have_room(monkeypatch: Patch) -> Any:
    import bvllm_transformers.budget as budget

    monkeypatch.setattr(budget, "keeps_all", lambda *args: False)
    fill = budget.fill

    def less(*args: Any) -> Any:
        filled = fill(*args)
        last = filled[-1]
        return [*filled[:-1], replace(last, tokens=last.tokens[:-1], columns=last.columns[:-1])]

    monkeypatch.setattr(budget, "fill", less)


@fault("keeps all", QWEN)
def all_are_kept_but_rounded(monkeypatch: Patch) -> Any:
    import bvllm_transformers.budget as budget

    monkeypatch.setattr(budget, "keeps_all", lambda *args: False)
    filled_by = budget.filled_by

    def rounded(place: Any, key: Any, made: Any, *more: Any, **named: Any) -> Any:
        made = made.with_tokens(made.tokens.bfloat16().float())
        return filled_by(place, key, made, *more, **named)

    monkeypatch.setattr(budget, "filled_by", rounded)


@fault("keeps all", QWEN)
def a_family_that_is_described_wrongly(monkeypatch: Patch) -> Any:
    from bvllm_transformers.families import FAMILIES, Family

    monkeypatch.setitem(FAMILIES, "Qwen2_5_VLForConditionalGeneration", Family(tail=1))


@fault("generate", QWEN)
def generate_is_not_wrapped(monkeypatch: Patch) -> Any:
    import bvllm_transformers.calls as calls
    from bvllm_transformers.shim import TransformersHost

    def whole(model: Any, original: Any, given: Any) -> Any:
        return original(model, **given)

    monkeypatch.setattr(calls, "_generate", whole)
    # nor the forward() that it calls
    plain = calls._forward
    monkeypatch.setattr(
        calls,
        "_forward",
        lambda model, original, given: (
            original(model, **given) if given.get("use_cache") else plain(model, original, given)
        ),
    )
    return TransformersHost()  # another one, so that another class is made


@fault("padding", QWEN)
def masks_are_lost(monkeypatch: Patch) -> Any:
    import bvllm_transformers.budget as budget

    spliced = budget.spliced

    def unmasked(*args: Any, **named: Any) -> Any:
        made = spliced(*args, **named)
        made["attention_mask"] = torch.ones_like(made["attention_mask"])
        return made

    monkeypatch.setattr(budget, "spliced", unmasked)


@fault("beside text", QWEN)
def prompts_without_video_are_lost(monkeypatch: Patch) -> Any:
    masks_are_lost(monkeypatch)


@fault("answers", QWEN)
def answers_leak_into_the_question(monkeypatch: Patch) -> Any:
    import bvllm_transformers.prompt_text as prompt_text

    words_of = prompt_text.words_of
    monkeypatch.setattr(
        prompt_text,
        "words_of",
        lambda inputs, *more: words_of({**inputs, "labels": None}, *more),
    )
    monkeypatch.setattr(
        prompt_text.Reader,
        "question",
        lambda self, ids: self.tokenizer.decode(list(ids), skip_special_tokens=True),
    )
