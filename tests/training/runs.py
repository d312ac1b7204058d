"""What the tests of training share: hosts, rows, and a callback that watches a run."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

HOSTS = ("bvllm_qwen2", "bvllm_videollama2", "bvllm_llama_vid")
SMALL = {"num_frames": 4, "tokens_per_frame": 4, "max_tokens": 12}


def talk(*turns: str) -> list[dict[str, str]]:
    """Human and model in turn, as the JSON has them."""
    return [{"from": "gpt" if i % 2 else "human", "value": turn} for i, turn in enumerate(turns)]


ROWS: list[Any] = [
    {
        "id": "bunny",
        "video": "big_buck_bunny.mp4",
        "conversations": talk("<video>\nwho walks over the meadow?", "a big rabbit wakes up."),
    },
    {
        "id": "noise",
        "image": "noise.png",
        "conversations": talk("what is this?\n<image>", "noise", "are you sure?", "yes, it is."),
    },
    {"id": "talk", "conversations": talk("how are you?", "very well, thank you.")},
    {
        "id": "blocks",
        "video": "blocks.mp4",
        "conversations": talk("<video>\nis there a tree?", "there is none."),
    },
]


class Watch(TrainerCallback):
    """The first state of all weights; each step's loss, learning rate and gradients."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.skipped: list[int] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.tower_modes: set[bool] = set()
        self.hooks: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = {n: value.clone() for n, value in kwargs["model"].state_dict().items()}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
        self.tower_modes |= {m.training for n, m in model.named_modules() if "vision_tower" in n}
        self.hooks.append(
            sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        )

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.rates.append(float(logs["learning_rate"]))
            self.skipped.append(logs["skipped_rows"])

    def moved(self, model: Any) -> set[str]:
        """The names of all weights that are not what they were."""
        state = model.state_dict()
        return {name for name in state if not torch.equal(state[name], self.before[name])}


def assert_same_steps(one: Watch, other: Watch) -> None:
    """Losses within 1e-5 of themselves; each gradient within 1e-4 of itself and 1e-6 of the norm
    of all gradients. (Those of the keys' biases are nothing but rounding: softmax ignores them.)"""
    assert len(one.losses) == len(one.gradients) > 0
    for ours, theirs in zip(one.losses, other.losses, strict=True):
        assert abs(ours - theirs) <= 1e-5 * abs(theirs)
    for some, same in zip(one.gradients, other.gradients, strict=True):
        assert some.keys() == same.keys()
        norm = float(torch.stack([gradient.norm() for gradient in same.values()]).norm())
        assert norm > 0
        for name, gradient in some.items():
            torch.testing.assert_close(
                gradient, same[name], rtol=1e-4, atol=1e-6 * norm, msg=lambda m, n=name: f"{n}: {m}"
            )


class Interrupted(TrainerCallback):
    """Ctrl-C behind a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt
