"""Checks of wrapping and unwrapping, and of hosts whose own projector is used as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bvllm_adapters.certify.compared import same
from bvllm_adapters.certify.report import Check, NotApplicable
from bvllm_adapters.certify.subject import NEW, PLENTY, QUESTION, Subject
from bvllm_adapters.hosts.wrap import wrap
from bvllm_adapters.hosts.wrapped import Wrapped

ANSWER = "Rabbits waltz."


def loaded(s: Subject) -> str:
    name = type(s.model).__name__
    if s.asked_for is not None:
        classes = [cls.__name__ for cls in type(s.model).__mro__]
        assert s.asked_for in classes, f"model: got a {name}, wanted a {s.asked_for}"
    for weight_name, weight in s.model.named_parameters():
        assert weight.is_meta or bool(weight.isfinite().all()), f"{weight_name}: got NaN or inf"
    assert callable(getattr(s.processor, "save_pretrained", None)), (
        "processor: got one without save_pretrained(folder), by which it goes along with a model"
    )
    assert not s.model.training, "model: got one in training mode, wanted eval"
    size = sum(weight.numel() for weight in s.model.parameters())
    return f"a {name} of {size:,} weights, in eval mode"


def wrapping(s: Subject) -> str:
    cls, keys = type(s.model), list(s.model.state_dict())
    with s.wrapped() as model:
        assert isinstance(model, cls), f"wrapped: got a {type(model)}, wanted a subclass of {cls}"
        same("class name of the wrapped model", type(model).__name__, cls.__name__)
        same("dtype of the tokenizer beside the model", *_dtypes(model))
        lost = [key for key in keys if key not in model.state_dict() and ".balanced" not in key]
        same("keys that a wrapped model lacks", _of_host(lost), [])
        try:
            wrap(model, max_tokens=3, host=s.name)
        except ValueError:
            pass
        else:
            raise AssertionError("wrapped twice: got no error, wanted a ValueError")
    return "in place, a subclass of the same name, and not twice"


def _dtypes(model: Any) -> tuple[torch.dtype, torch.dtype]:
    tokenizer = model.balanced_tokenizer
    words: torch.dtype = model.get_input_embeddings().weight.dtype
    trained = any(True for _ in tokenizer.trained_parameters())
    return (tokenizer.dtype if trained else words), words


def _of_host(keys: list[str]) -> list[str]:
    return [key for key in keys if not key.startswith("balanced_tokenizer.")]


def unwrapping(s: Subject) -> str:
    """All is as before: class, weights, hooks, attributes, logits."""
    calls = _calls(s)
    before = [run() for run in calls]
    cls, state, around = type(s.model), _state(s.model), _around(s.model)
    with s.wrapped():
        s.open(s.video).ask(QUESTION, **NEW)
    same("class", type(s.model), cls)
    assert not isinstance(s.model, Wrapped), "model: got a wrapped one, wanted it unwrapped"
    after = _state(s.model)
    same("keys", list(after), list(state))
    for name, value in state.items():
        same(name, after[name], value)
    now = _around(s.model)
    for name, held in around.items():
        same(f"hooks and attributes of {name or 'the model'}", now.get(name), held)
    same("modules", list(now), list(around))
    for run, wanted in zip(calls, before, strict=True):
        same("logits", run(), wanted)
    return f"{len(state)} weights and {len(calls)} calls, bit for bit"


def _calls(s: Subject) -> list[Callable[[], torch.Tensor]]:
    """Logits of the model without its wrapping: of text and, if it can, of a video."""
    found: list[Callable[[], torch.Tensor]] = []
    for videos in ([s.video], [None]):
        try:
            inputs = s.call(videos)
            s.forward(inputs)
        except Exception:  # a model may be unable to do without us what it does with us
            continue
        found.append(lambda inputs=inputs: s.forward(inputs).logits)  # type: ignore[misc]
    return found


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _around(model: nn.Module) -> dict[str, Any]:
    """Of each module its class, its attributes by name, how many hooks it has."""
    return {
        name: (
            type(part).__name__,
            sorted(part.__dict__),
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
            len(part._backward_hooks),
        )
        for name, part in model.named_modules()
    }


def keeps_all(s: Subject) -> str:
    """Line 13: a budget that keeps everything is no budget at all."""
    if s.learned:
        raise NotApplicable("its visual tokens are sampled anew, not the host's own")
    plain = s.call([s.video])
    wanted = s.forward(plain).logits
    said = s.new_ids(s.call([s.video], to="generate"))
    labelled = _labelled(s)
    loss = None if labelled is None else s.forward(labelled).loss
    for tokens in (PLENTY, _all(s, plain)):
        with s.wrapped(replace(s.config, max_tokens=tokens)):
            same(f"logits under a budget of {tokens}", s.forward(plain).logits, wanted)
            same("new ids", s.new_ids(s.call([s.video], to="generate")), said)
            if labelled is not None:
                same("loss", s.forward(labelled).loss, loss)
    with s.wrapped():
        less = s.forward(plain).logits
        assert less.shape != wanted.shape or not torch.equal(less, wanted), (
            "a budget of a third gave the same logits as none"
        )
    return "logits, loss and new ids, bit for bit" if labelled else "logits and new ids"


def _labelled(s: Subject) -> dict[str, Any] | None:
    try:
        return s.call([s.video], answers=[ANSWER], padding_side="right")
    except NotApplicable:
        return None


def _all(s: Subject, inputs: dict[str, Any]) -> int:
    """How many visual tokens the unmodified model reads."""
    with s.wrapped(replace(s.config, max_tokens=PLENTY)):
        prompt, _ = s.read(inputs)
        return len(s.seen_in(prompt))


CHECKS = (
    Check("load", "", "a whole model of the class, and its processor", loaded),
    Check("wrap", "", "in place", wrapping),
    Check("unwrap", "10", "all is as before", unwrapping),
    Check("keeps all", "13", "a budget that keeps everything changes no bit", keeps_all),
)
