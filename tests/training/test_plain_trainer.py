"""transformers' own Trainer on a wrapped model: evaluate, predict, metrics, smoothed labels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import HOSTS
from torch.nn.functional import cross_entropy, log_softmax
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

import bvllm_adapters as bvllm
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.question import pad
from bvllm_adapters.training.host import Example
from bvllm_adapters.training.rows import Source, read_rows
from bvllm_adapters.training.samples import Collate, Samples
from bvllm_adapters.training.stages import decoder_linears
from bvllm_adapters.weights.lora_layers import add_lora

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
OURS = ("questions", "seeds", "skipped", "drawn")


class Setting:
    """A wrapped host, rows about videos, an image and nothing, and a plain Trainer for them."""

    def __init__(self, host: str, folder: Path, data: Any, out: Path) -> None:
        torch.manual_seed(0)
        self.model: Any = bvllm.wrap(bvllm.load(folder), max_tokens=12)
        served: Any = host_of(self.model)
        training = served.training(served.processor(folder))
        samples = Samples(read_rows([Source(data.file, data.folder)]), training, max_frames=5)
        self.examples: list[Any] = [samples[0, i] for i in range(4)]
        assert all(isinstance(one, Example) for one in self.examples), self.examples
        self.collate = Collate(training)
        self.out = out

    def batch(self, examples: list[Example]) -> dict[str, Any]:
        batch = {k: v for k, v in self.collate(examples).items() if k not in OURS}
        if "pixel_values" in batch:  # the native host's, which reads no question out of a prompt
            tokenize = self.model.balanced_tokenizer.question_tokenizer
            asked = [tokenize(one.question) for one in examples for _ in one.visuals]
            batch["question_ids"], mask = pad(asked)
            batch["question_mask"] = mask.long()
        return batch

    def trainer(
        self,
        kind: type[Trainer] = Trainer,
        arguments: type[TrainingArguments] = TrainingArguments,
        args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Trainer:
        settings: dict[str, Any] = {
            "output_dir": str(self.out),
            "max_steps": 1,
            "use_cpu": True,
            "report_to": [],
            "remove_unused_columns": False,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "disable_tqdm": True,
            "save_strategy": "no",
            "learning_rate": 0.0,
        }
        return kind(
            model=self.model,
            args=arguments(**settings | (args or {})),
            train_dataset=self.examples,
            eval_dataset=self.examples,
            data_collator=self.batch,
            **kwargs,
        )


@pytest.fixture(params=HOSTS)
def setting(request: Any, hosts: dict[str, Path], data: Any, tmp_path: Path) -> Setting:
    return Setting(request.param, hosts[request.param], data, tmp_path / "out")


@torch.no_grad()
def test_logits_and_labels_of_the_output_are_spliced(setting: Setting) -> None:
    batch = setting.batch(setting.examples)
    out = setting.model(**batch)
    assert out.labels.shape == out.logits.shape[:2]
    assert out.labels.shape[1] > batch["labels"].shape[1]
    for row, given in zip(out.labels, batch["labels"], strict=True):
        assert torch.equal(row[row != -100], given[given != -100])
    loss = cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), out.labels[:, 1:].flatten())
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)


@torch.no_grad()
def test_a_trainer_gets_logits_over_the_ids(setting: Setting) -> None:
    batch = setting.batch(setting.examples)
    spliced = setting.model(**batch)
    out = setting.model(**batch, num_items_in_batch=torch.tensor(7))
    labels = batch["labels"]
    assert out.logits.shape[:2] == labels.shape
    # What predicts an answer is the same, whichever way it is counted.
    theirs, ours = labels[:, 1:] != -100, spliced.labels[:, 1:] != -100
    assert torch.equal(out.logits[:, :-1][theirs], spliced.logits[:, :-1][ours])
    answers = log_softmax(out.logits[:, :-1][theirs].float(), -1)
    assert out.loss.item() == pytest.approx(
        -answers.gather(1, labels[:, 1:][theirs][:, None]).sum().item() / 7, rel=1e-5
    )


def test_in_training_only_the_loss_is_wanted(setting: Setting) -> None:
    batch = setting.batch(setting.examples)
    out = setting.model.train()(**batch, num_items_in_batch=torch.tensor(7))
    assert out.labels.shape == out.logits.shape[:2]
    labels = batch.pop("labels")
    out = setting.model(**batch, num_items_in_batch=torch.tensor(7))
    assert out.logits.shape[:2] == labels.shape


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_placeholder_has_the_logits_of_its_last_token(side: str, setting: Setting) -> None:
    video, _, words, _ = setting.examples
    one, other = (setting.batch([each]) for each in (video, words))
    both = setting.batch([video, words])
    if side == "left":
        count = int(both["attention_mask"][1].sum())
        for name in ("input_ids", "attention_mask", "labels"):
            both[name][1] = both[name][1].roll(-count)
    together = setting.model(**both, num_items_in_batch=1).logits
    alone = setting.model(**one, num_items_in_batch=1).logits
    spliced = setting.model(**one).logits
    place = next(
        i for i, x in enumerate(one["input_ids"][0].tolist()) if x in placeholders(setting)
    )
    behind = one["input_ids"].shape[1] - place
    assert torch.equal(alone[0, place:], spliced[0, -behind:])
    assert torch.equal(alone[0, :place], spliced[0, :place])
    kept = both["attention_mask"].bool()
    torch.testing.assert_close(together[0, kept[0]], alone[0], atol=1e-5, rtol=1e-5)
    words_alone = setting.model(**other, num_items_in_batch=1).logits
    torch.testing.assert_close(together[1, kept[1]], words_alone[0], atol=1e-5, rtol=1e-5)


def placeholders(setting: Setting) -> Any:
    return setting.collate.host.placeholders


def test_metrics_are_of_logits_beside_their_labels(setting: Setting) -> None:
    seen: list[Any] = []

    def metrics(both: Any) -> dict[str, float]:
        seen.append(both)
        predicted, wanted = both.predictions[:, :-1], both.label_ids[:, 1:]
        kept = wanted != -100
        scores = log_softmax(torch.from_numpy(predicted[kept]).float(), -1)
        loss = -scores.gather(1, torch.from_numpy(wanted[kept])[:, None]).mean()
        return {"by_hand": loss.item()}

    trainer = setting.trainer(compute_metrics=metrics)
    found = trainer.evaluate()
    (both,) = seen
    assert both.predictions.shape[:2] == both.label_ids.shape == (4, longest(setting))
    # Of rows by two of unequal lengths, as of each alone.
    losses = []
    for i, example in enumerate(setting.examples):
        batch = setting.batch([example])
        length = batch["labels"].shape[1]
        assert np.array_equal(both.label_ids[i, :length], batch["labels"][0].numpy())
        assert bool((both.label_ids[i, length:] == -100).all())
        with torch.no_grad():
            alone = setting.model(**batch)
        losses.append((alone.loss.item(), int((batch["labels"] != -100).sum())))
    wanted = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    assert found["eval_by_hand"] == pytest.approx(wanted, rel=1e-4)

    ignored = trainer.evaluate(
        ignore_keys=["cache", "past_key_values", "attention_mask", "visual_tokens"]
    )
    assert ignored["eval_by_hand"] == found["eval_by_hand"]
    assert trainer.predict(setting.examples).predictions.shape == both.predictions.shape
    only = setting.trainer(args={"prediction_loss_only": True})
    assert only.evaluate()["eval_loss"] == pytest.approx(found["eval_loss"])
    assert only.predict(setting.examples).predictions is None


def longest(setting: Setting) -> int:
    return max(len(example.input_ids) for example in setting.examples)


def test_labels_are_smoothed_where_they_belong(setting: Setting) -> None:
    trainer = setting.trainer(args={"label_smoothing_factor": 0.1})
    assert 0 < trainer.train().training_loss < 100
    evaluated = trainer.evaluate()["eval_loss"]
    losses = []
    for i in (0, 2):
        with torch.no_grad():
            out = setting.model(**setting.batch(setting.examples[i : i + 2]))
        kept = out.labels[:, 1:] != -100
        scores = -log_softmax(out.logits[:, :-1][kept].float(), -1)
        likely = scores.gather(1, out.labels[:, 1:][kept][:, None]).squeeze(1)
        losses.append((0.9 * likely + 0.1 * scores.mean(-1)).mean().item())
    assert evaluated == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_answers_are_generated_for_metrics(setting: Setting) -> None:
    trainer = setting.trainer(
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        {"predict_with_generate": True},
        processing_class=setting.collate.host.processor.tokenizer,
    )
    found = trainer.predict(setting.examples, max_new_tokens=3)  # type: ignore[call-arg]
    assert len(found.predictions) == len(found.label_ids) == 4
    assert np.isfinite(found.metrics["test_loss"])


def test_a_loss_of_ones_own_has_logits_beside_its_labels(setting: Setting) -> None:
    shapes = []

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        shapes.append((outputs.logits.shape[:2], labels.shape))
        logits = outputs.logits[:, :-1].flatten(0, 1).float()
        return cross_entropy(logits, labels[:, 1:].flatten())

    trainer = setting.trainer(compute_loss_func=loss)
    trainer.train()
    assert shapes[0][0] == shapes[0][1]
    found = trainer.evaluate()["eval_loss"]  # which leaves the model in eval mode
    with torch.no_grad():
        alone = [setting.model(**setting.batch(setting.examples[i : i + 2])).loss for i in (0, 2)]
    assert found == pytest.approx(float(sum(alone)) / 2, rel=1e-5)


def trained(setting: Setting, **args: Any) -> dict[str, torch.Tensor]:
    """What two steps of a Trainer make of the tokenizer."""
    before = {n: p.clone() for n, p in setting.model.state_dict().items()}
    trainer = setting.trainer(args={"max_steps": 2, "learning_rate": 1e-3, **args})
    trainer.train()
    after = {n: p.clone() for n, p in setting.model.balanced_tokenizer.state_dict().items()}
    moved = [n for n, p in after.items() if not torch.equal(p, before[f"balanced_tokenizer.{n}"])]
    assert len(moved) > 100
    setting.model.load_state_dict(before)
    return after


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_may_be_computed_again(reentrant: bool, setting: Setting) -> None:
    plain = trained(setting)
    again = trained(
        setting,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    for name, value in again.items():
        torch.testing.assert_close(value, plain[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_is_trained(setting: Setting) -> None:
    plain = trained(setting)
    compiled = trained(setting, torch_compile=True, torch_compile_backend="aot_eager")
    for name, value in compiled.items():
        torch.testing.assert_close(value, plain[name], atol=1e-4, rtol=1e-3)


def learned(model: Any) -> dict[str, torch.Tensor]:
    """Weights of the tokenizer and of its LoRA, as they are now."""
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name.startswith("balanced_tokenizer.") or ".bvllm_lora." in name
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_resumed_run_has_the_tokenizer_that_was_trained(setting: Setting) -> None:
    add_lora(setting.model, decoder_linears(setting.model, ("q_proj",)), rank=2, alpha=4)
    fresh, start = copy.deepcopy(setting.model), learned(setting.model)
    args = {"max_steps": 2, "learning_rate": 5e-3, "save_strategy": "steps", "save_steps": 1}
    setting.trainer(args=args).train()
    end = learned(setting.model)
    assert not any(torch.equal(start[name], end[name]) for name in end if name.endswith("queries"))
    setting.model = fresh
    setting.trainer(args=args).train(resume_from_checkpoint=True)
    assert same(learned(fresh), end)
    # The same folder is a saved model, too.
    again = learned(bvllm.load(setting.out / "checkpoint-2"))
    assert same(again, end)


def test_the_best_checkpoint_brings_its_tokenizer_back(setting: Setting) -> None:
    args = {
        "max_steps": 3, "learning_rate": 5e-2, "save_strategy": "steps", "save_steps": 1,
        "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
        "prediction_loss_only": True,
    }  # fmt: skip
    trainer = setting.trainer(args=args)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert same(learned(setting.model), learned(bvllm.load(best)))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-5)
