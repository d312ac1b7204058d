"""What people put around a model goes on around a wrapped one: hooks, peft, compile, threads."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import accelerate
import processors
import pytest
import torch
from asked import HOST, PLENTY, far, greedy, lengths, prompt, seen_by_decoder, wrapped
from peft import LoraConfig, get_peft_model
from torch import Tensor

import bvllm_adapters as bvllm
from bvllm_adapters.question import asking

NAMES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
BUDGET = 7
every_name = pytest.mark.parametrize("name", NAMES)


def logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**inputs).logits
    return out


def same(one: Any, other: Any, inputs: dict[str, Any]) -> bool:
    """Whether two models say the same, by forward() and by generate()."""
    equal = torch.equal(logits(one, inputs), logits(other, inputs))
    return equal and torch.equal(greedy(one, inputs), greedy(other, inputs))


@every_name
@pytest.mark.parametrize("first", ["wrap", "hooks"])
def test_hooks_of_accelerate_on_the_instance_keep_the_budget(name: str, first: str) -> None:
    """They keep a forward() on the instance, past that of the class."""
    inputs, want = prompt(name), wrapped(name, max_tokens=BUDGET)
    model = processors.model(name)

    def hook() -> None:
        for part in (model, model.base_model):
            accelerate.hooks.add_hook_to_module(part, accelerate.hooks.ModelHook())

    steps: list[Callable[[], Any]] = [
        lambda: bvllm.wrap(model, host=HOST, max_tokens=BUDGET),
        hook,
    ]
    for step in steps if first == "wrap" else steps[::-1]:
        step()
    assert "forward" in vars(model)
    assert same(model, want, inputs)
    bvllm.unwrap(model)
    assert same(model, processors.model(name), inputs)


@every_name
@pytest.mark.parametrize("first", ["wrap", "offload"])
def test_weights_that_are_offloaded(name: str, first: str) -> None:
    inputs, want = prompt(name), wrapped(name, max_tokens=BUDGET)
    bare = accelerate.cpu_offload(processors.model(name), execution_device=torch.device("cpu"))
    try:
        greedy(bare, inputs)
    except NotImplementedError:
        pytest.skip("cannot be offloaded unwrapped either")
    model = processors.model(name) if first == "wrap" else bare
    model = bvllm.wrap(model, host=HOST, max_tokens=BUDGET)
    if first == "wrap":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert same(model, want, inputs)


def lora(name: str) -> LoraConfig:
    return LoraConfig(
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        init_lora_weights=False,
        r=2,
        task_type="CAUSAL_LM",
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
@every_name
def test_lora_before_and_after_wrapping(name: str) -> None:
    inputs = prompt(name)
    torch.manual_seed(0)
    before = get_peft_model(processors.model(name), lora(name)).eval()
    bvllm.wrap(before, host=HOST, max_tokens=BUDGET)
    torch.manual_seed(0)
    after = get_peft_model(wrapped(name, max_tokens=BUDGET), lora(name)).eval()
    seen = seen_by_decoder(before.get_base_model())
    assert same(before, after, inputs)
    assert max(lengths(seen)) < inputs["input_ids"].shape[1]
    assert not torch.equal(logits(before, inputs), logits(wrapped(name, max_tokens=BUDGET), inputs))
    out = greedy(before, inputs)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    merged = after.merge_and_unload()
    assert far(logits(merged, inputs), logits(before, inputs)) < 1e-4
    bvllm.unwrap(before)
    torch.manual_seed(0)
    bare = get_peft_model(processors.model(name), lora(name)).eval()
    assert same(before, bare, inputs)


@every_name
def test_copies_and_pickles(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    unpickled = pickle.loads(pickle.dumps(model))
    greedy(model, inputs)  # which leaves hooks that no pickle takes on some models, unwrapped too
    for twin in (copy.deepcopy(model), unpickled):
        assert same(twin, model, inputs)
        bvllm.unwrap(twin)
        assert same(twin, processors.model(name), inputs)
    bvllm.unwrap(model)
    assert model.state_dict().keys() == processors.model(name).state_dict().keys()
    assert same(model, processors.model(name), inputs)


class Asked(torch.nn.Module):
    """The first frames, and what was asked."""

    sees = True
    reads_question = True

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[tuple[int, str]] = []

    def see(self, frames: Tensor) -> Tensor:
        return frames.flatten(1)[:, :8]

    def forward(self, cls: Tensor, question: str, **how: Any) -> Any:
        self.questions.append((threading.get_ident(), question))
        return bvllm.Selection.whole(torch.arange(min(how["num_frames"], len(cls))), len(cls))


@every_name
def test_two_threads_may_ask_one_model(name: str) -> None:
    selector = Asked()
    model = wrapped(name, max_tokens=BUDGET, selector=selector)
    prompts = [prompt(name, "Who?"), prompt(name, "And then, why is it so?")]
    wants, answers = [], [[], []]
    for i, one in enumerate(prompts):
        with asking(f"question {i}"):
            wants.append((greedy(model, one, max_new_tokens=12), logits(model, one)))
    selector.questions.clear()
    begin = threading.Barrier(2)

    def ask(i: int) -> None:
        begin.wait()
        with asking(f"question {i}"):
            for _ in range(4):
                found = greedy(model, prompts[i], max_new_tokens=12), logits(model, prompts[i])
                answers[i].append(found)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for want, found in zip(wants, answers, strict=True):
        assert len(found) == 4
        assert all(torch.equal(a, b) for one in found for a, b in zip(want, one, strict=True))
    assert len(set(selector.questions)) == 2


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", pytest.param("llava_onevision", marks=pytest.mark.slow)]
)
def test_compiled(name: str) -> None:
    """The language model alone, as is advised, and the whole, whose graph breaks but is right."""
    inputs, want = prompt(name), wrapped(name, max_tokens=BUDGET)
    model = wrapped(name, max_tokens=BUDGET)
    model.base_model.language_model.compile(backend="eager")
    assert same(model, want, inputs)
    whole = torch.compile(wrapped(name, max_tokens=BUDGET), backend="eager")
    assert torch.equal(logits(whole, inputs), logits(want, inputs))
    torch._dynamo.reset()


@every_name
def test_budgeted_once_whoever_calls_whom(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET), prompt(name)
    pixels = [n for n in ("pixel_values", "pixel_values_videos") if n in inputs]
    rows: list[int] = []
    encoder = "get_image_features" if name == "internvl" else "get_video_features"
    own = getattr(model.base_model, encoder)

    def count(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs[pixels[0]]))
        return own(*args, **kwargs)

    setattr(model.base_model, encoder, count)
    seen = seen_by_decoder(model)
    greedy(model, inputs)
    assert len(rows) == 1
    assert len(set(lengths(seen)[1:])) == 1  # a new id at a time
    logits(model, inputs)
    assert len(rows) == 2


def test_all_kept_is_not_encoded_apart() -> None:
    model, inputs = wrapped("qwen3_vl", max_tokens=PLENTY), prompt("qwen3_vl")
    seen = seen_by_decoder(model)
    greedy(model, inputs)
    assert lengths(seen)[0] == inputs["input_ids"].shape[1]
