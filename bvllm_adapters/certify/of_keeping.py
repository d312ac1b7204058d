"""Checks of what is saved, copied and read again."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bvllm_adapters.certify.compared import same
from bvllm_adapters.certify.report import Check, NotApplicable
from bvllm_adapters.certify.subject import NEW, QUESTION, Subject
from bvllm_adapters.features import VisualTokens
from bvllm_adapters.hosts.adapter import save_adapter
from bvllm_adapters.hosts.load import load
from bvllm_adapters.hosts.wrap import unwrap, wrap

HARMLESS = {".json", ".safetensors"}


def _said(s: Subject, model: Any = None) -> tuple[VisualTokens, str]:
    """A wrapped model's tokens of a video, and its answer."""
    opened = s.open(s.video, model)
    return s.tokens(opened), opened.ask(QUESTION, **NEW).text


def _check_twin(s: Subject, name: str, twin: Any, wanted: tuple[VisualTokens, str]) -> None:
    tokens, text = _said(s, twin)
    same(f"frames of {name}", tokens.frame, wanted[0].frame)
    same(f"tokens of {name}", tokens.tokens, wanted[0].tokens)
    same(f"answer of {name}", text, wanted[1])


def adapter(s: Subject) -> str:
    fresh = s.copy()
    with TemporaryDirectory() as folder, s.wrapped() as model:
        wanted = _said(s)
        before = _bits(model)
        save_adapter(model, folder)
        _check_bits(model, before)
        files = [file for file in Path(folder).rglob("*") if file.is_file()]
        odd = sorted(file.name for file in files if file.suffix not in HARMLESS)
        same("files of an adapter that are neither JSON nor safetensors", odd, [])
        wrap(fresh, adapter=folder, host=s.name)
        _check_twin(s, "a fresh copy with the adapter", fresh, wanted)
        unwrap(fresh)
        with torch.no_grad():
            for weight in fresh.parameters():
                weight.add_(1)
        try:
            wrap(fresh, adapter=folder, host=s.name)
        except ValueError:
            pass
        else:
            raise AssertionError("an adapter beside other weights: got no error, wanted one")
    return f"{len(files)} files; the same bits on a fresh copy, refused beside other weights"


def reload(s: Subject) -> str:
    keys = sorted(s.model.state_dict())
    with TemporaryDirectory() as folder, s.wrapped() as model:
        wanted = _said(s)
        before = _bits(model)
        model.save_pretrained(folder)
        s.processor.save_pretrained(folder)
        _check_bits(model, before)
        _check_twin(s, "the model after it was saved", model, wanted)
        words = model.get_input_embeddings().weight
        again = load(folder, dtype=words.dtype, host=s.name).to(words.device)
        same("class of what was loaded", type(again).__name__, type(model).__name__)
        _check_twin(s, "what was loaded", again, wanted)
        other = Subject(model, s.host.processor(Path(folder)), s.host, name=s.name)
        same("answer with the saved processor", _said(other)[1], wanted[1])
        same("keys of what was loaded", sorted(unwrap(again).state_dict()), keys)
    return f"{len(before)} weights, processor and adapter in one folder"


def deep_copy(s: Subject) -> str:
    with s.wrapped() as model:
        wanted = _said(s)
        twin = copy.deepcopy(model)
        _check_twin(s, "a deep copy", twin, wanted)
        shared = _addresses(model) & _addresses(twin)
        same("weights that a deep copy shares", len(shared), 0)
        unwrap(twin)
        _check_twin(s, "the model after its copy was unwrapped", model, wanted)
    return "the same answers, weights of its own"


def _addresses(model: Any) -> set[int]:
    return {weight.data_ptr() for weight in model.parameters() if weight.numel()}


def pickled(s: Subject) -> str:
    with s.wrapped() as model:
        wanted = _said(s)
        try:
            packed = pickle.dumps(model)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if _packs(unwrap(copy.deepcopy(model))):
                raise AssertionError(f"pickle: {error}, though without us it can be") from error
            raise NotApplicable(
                f"the model cannot be pickled without us either: {error}"
            ) from error
        twin = pickle.loads(packed)
        same("class of what was pickled", type(twin).__name__, type(model).__name__)
        _check_twin(s, "what was pickled", twin, wanted)
    return f"{len(packed):,} bytes"


def _packs(model: Any) -> bool:
    try:
        pickle.dumps(model)
    except Exception:  # whatever it is, it is not ours
        return False
    return True


def _bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _check_bits(model: Any, before: dict[str, torch.Tensor]) -> None:
    """Saving changes nothing in a live model."""
    now = model.state_dict()
    same("keys after saving", list(now), list(before))
    for name, value in before.items():
        same(f"{name} after saving", now[name], value)


CHECKS = (
    Check("adapter", "12", "bit-identical on a fresh copy, refused beside others", adapter),
    Check("save and reload", "14", "what is saved is what was there", reload),
    Check("deep copy", "", "the same answers, weights of its own", deep_copy),
    Check("pickle", "", "the same answers", pickled),
)
