"""Checks of a model's own forward() and generate() while it is wrapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.certify.calls import Side
from bvllm_adapters.certify.compared import near, same
from bvllm_adapters.certify.of_answers import check_read
from bvllm_adapters.certify.reader import Reader
from bvllm_adapters.certify.report import Check, NotApplicable
from bvllm_adapters.certify.spies import asked_of
from bvllm_adapters.certify.subject import OTHER, PLENTY, QUESTION, Subject
from bvllm_adapters.question import asking

ANSWERS = "Quixotic zebras juggle marmalade.", "Rabbits waltz."


def forward(s: Subject) -> str:
    with s.wrapped() as model:
        inputs = s.call([s.video])
        tight = max(s.budget // 2, 1)
        found = []
        for most in (s.budget, tight):
            model.balanced_tokenizer.config = _with(model, max_tokens=most)
            found.append(check_read(s, *s.read(inputs)))
            assert found[-1] <= most, f"got {found[-1]} visual tokens over a budget of {most}"
        shown, less = found
        if s.learned:  # as many frames are chosen, whatever the budget
            model.balanced_tokenizer.config = _with(model, max_tokens=PLENTY)
            free = check_read(s, *s.read(inputs))
            same("visual tokens", found, [min(free, s.budget), min(free, tight)])
        assert s.forward(inputs).logits.isfinite().all(), "logits: got NaN or inf"
    return f"{shown} and {less} visual tokens under budgets of {s.budget} and {tight}"


def generate(s: Subject) -> str:
    with s.wrapped():
        inputs = s.call([s.video], to="generate")
        shown = check_read(s, *s.read(inputs, to="generate"))
        assert shown <= s.budget, f"got {shown} visual tokens over a budget of {s.budget}"
        new = s.new_ids(inputs)[0].tolist()
        first = s.forward(s.call([s.video])).logits[0, -1]
        greedy = float(first[new[0]]), float(first.max())
        close = abs(greedy[0] - greedy[1]) <= 1e-3 * max(1.0, abs(greedy[1]))
        assert close, (
            f"first new id: got {new[0]}, wanted {int(first.argmax())}, the best of forward()"
        )
        same("new ids, once more", s.new_ids(inputs)[0].tolist(), new)
    return f"{len(new)} new ids behind {shown} visual tokens, the first as forward() has it"


def no_budget(s: Subject) -> str:
    with s.wrapped() as model:
        inputs = s.call([s.video])
        tokenizer = model.balanced_tokenizer
        tokenizer.config = _with(model, max_tokens=PLENTY)
        wide = s.forward(inputs).logits
        tokenizer.config = _with(model, max_tokens=None)
        same("logits under a budget that is not reached", wide, s.forward(inputs).logits)
    return f"a budget of {PLENTY} and none"


def backward(s: Subject) -> str:
    with s.wrapped() as model:
        try:
            inputs = s.call([s.video], answers=ANSWERS[:1], padding_side="right")
        except NotApplicable:  # of a model without labels
            inputs = s.call([s.video])
        training = model.training
        model.train()
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]), asking(QUESTION):
                torch.manual_seed(0)
                out = model(**inputs)
                loss = getattr(out, "loss", None)
                loss = out.logits[:, -1].logsumexp(-1).sum() if loss is None else loss
                loss.backward()
            assert bool(loss.isfinite()), f"loss: got {float(loss)}"
            reached = _reached(model)
        finally:
            model.zero_grad(set_to_none=True)
            model.train(training)
    return f"a loss of {float(loss.detach()):.3g}, and gradients in {', '.join(reached)}"


def _reached(model: Any) -> list[str]:
    """Which parts gradients have reached; all that are trained and the words must be among them."""
    tokenizer = model.balanced_tokenizer
    parts: dict[str, nn.Module] = {"word embeddings": model.get_input_embeddings()}
    if not tokenizer.chooses_untrained:
        parts["selector"] = tokenizer.frame_selector
    if tokenizer.spatial_sampler is not None:
        parts["sampler"] = tokenizer.spatial_sampler
    if tokenizer.projection is not None:
        parts["projection"] = tokenizer.projection
    for name, part in parts.items():
        found = [p.grad for p in part.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in found), f"gradient of the {name}: got NaN"
        trained = any(p.requires_grad for p in part.parameters())
        heard = any(bool((grad != 0).any()) for grad in found)
        assert heard or not trained, f"gradient of the {name}: got none, wanted some"
    return list(parts)


def padding(s: Subject) -> str:
    """Two prompts of different lengths as one batch, padded on either side."""
    s.needs_float32()
    own = _rounding(s)
    with s.wrapped():
        for name, got, wanted in _padded(s):
            near(name, got, wanted, own=own)
    return "two videos with questions of two lengths, padded left and right"


def _padded(s: Subject) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Logits of prompts in a batch, and alone."""
    videos, questions = [s.video, s.other], [QUESTION, OTHER]
    alone = [
        s.forward(s.call([video], [question])).logits[0]
        for video, question in zip(videos, questions, strict=True)
    ]
    sides: tuple[Side, ...] = ("left", "right")
    for side in sides:
        logits = s.forward(s.call(videos, questions, padding_side=side)).logits
        for i, wanted in enumerate(alone):
            own = logits[i, -len(wanted) :] if side == "left" else logits[i, : len(wanted)]
            yield f"logits of prompt {i} in a batch padded on the {side}", own, wanted


def _rounding(s: Subject) -> float:
    """What the unmodified model's logits differ by from alone to a batch, as sums are taken in
    another order; 0 if it cannot be called with these videos, or differs by more than rounding."""
    try:
        found = [(got - wanted).abs().max() / wanted.abs().max() for _, got, wanted in _padded(s)]
    except NotApplicable:
        raise
    except Exception:  # a model may be unable to do without us what it does with us
        return 0.0
    most = float(torch.stack(found).max())
    return most if most < 1e-4 else 0.0


def beside_text(s: Subject) -> str:
    s.needs_float32()
    with s.wrapped():
        wanted = s.forward(s.call([None], [OTHER])).logits[0]
        logits = s.forward(s.call([s.video, None], [QUESTION, OTHER])).logits
        near("logits of a prompt without video", logits[1, -len(wanted) :], wanted)
    return "a prompt with a video and one without, in one batch"


def text_alone(s: Subject) -> str:
    inputs = s.call([None])
    wanted = s.forward(inputs).logits
    with s.wrapped():
        same("logits of text alone", s.forward(inputs).logits, wanted)
    return f"{wanted.shape[1]} ids, wrapped and not"


def answers(s: Subject) -> str:
    """What is asked does not depend on what is answered."""
    reading: dict[str, Any] = {} if s.learned else {"selector": Reader(), "max_tokens": s.budget}
    with s.wrapped(**reading):
        told, tokens = [], []
        for answer in ANSWERS:
            inputs = s.call([s.video], answers=[answer], padding_side="right")
            with asked_of(s.model) as calls:
                s.forward(inputs)
            assert calls, "the tokenizer was not called, wanted it to be"
            told += [question for questions, _ in calls for question in questions]
            tokens += [made.tokens for _, each in calls for made in each]
        for question in told:
            _check_no_answer(question)
        same("questions beside two answers", told[0], told[-1])
        same("tokens beside two answers", tokens[0], tokens[-1])
        if isinstance(told[0], Tensor):
            return "two answers, one question, which the caller gives as ids"
        with asking(OTHER), asked_of(s.model) as calls:
            s.forward(inputs)
        same("question that `asking` says", calls[0][0][0], OTHER)
    return f"two answers, one question: {told[0]!r}"


def _check_no_answer(question: Any) -> None:
    if not isinstance(question, str):
        return
    words = {word.strip(".") for answer in ANSWERS for word in answer.split()}
    leaked = sorted(word for word in words if word.lower() in question.lower())
    assert not leaked, f"question: got {question!r}, wanted it without the answer's {leaked}"


def _with(model: Any, **settings: Any) -> Any:
    return replace(model.balanced_tokenizer.config, **settings)


CHECKS = (
    Check("forward", "1, 3", "the model's own call keeps the budget", forward),
    Check("forward, plenty", "1", "a budget that is not reached changes no bit", no_budget),
    Check("backward", "", "gradients reach what is trained", backward),
    Check("generate", "1", "the model's own generate() keeps the budget", generate),
    Check("padding", "6", "a prompt does not depend on its batch and padding", padding),
    Check("beside text", "6", "prompts without video may stand in a batch", beside_text),
    Check("text alone", "10", "prompts without video are untouched", text_alone),
    Check("answers", "9", "answers never reach the question", answers),
)
