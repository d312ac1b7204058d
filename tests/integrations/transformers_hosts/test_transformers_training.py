"""A wrapped model is trained and evaluated as before, by hand and by Trainer, under its budget."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from asked import PLENTY, batch, far, greedy, lengths, prompt, seen_by_decoder, wrapped
from processors import model as bare_model
from tiny import family
from torch import Tensor
from torch.nn import functional as F
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

NAMES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision")
BUDGET = 7
QUESTIONS = ("What happens?", "And then, why is it so?", "Who?", "Where does he go?")
every_name = pytest.mark.parametrize("name", NAMES)


def example(name: str, question: str = QUESTIONS[0], answer: str = "Yes, a cat") -> dict[str, Any]:
    """A prompt and its answer, whose words alone are labels."""
    inputs = prompt(name, question)
    new = torch.tensor([list(answer.encode())])
    out = dict(inputs)
    for key, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            more = new if key == "input_ids" else torch.full_like(new, key == "attention_mask")
            out[key] = torch.cat([value, more.to(value)], dim=1)
    before = torch.full_like(inputs["input_ids"], -100)
    return {**out, "labels": torch.cat([before, new], dim=1)}


def gradients(model: Any) -> dict[str, Tensor]:
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


@every_name
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_of_all_kept_are_the_unmodified_models(name: str, side: str) -> None:
    inputs = batch([example(name), example(name, QUESTIONS[1], "No")], side)
    found = []
    for model in (bare_model(name), wrapped(name, max_tokens=PLENTY)):
        model.train()
        loss = model(**inputs).loss
        loss.backward()
        found.append((loss, gradients(model)))
    (want, before), (loss, after) = found
    assert torch.equal(loss, want)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@every_name
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_a_padded_batch_is_that_of_its_prompts(name: str, side: str) -> None:
    model = wrapped(name, max_tokens=BUDGET)
    singles = [example(name), example(name, QUESTIONS[1], "No")]
    counts = [int((one["labels"] != -100).sum()) for one in singles]
    with torch.no_grad():
        each = [model(**one).loss for one in singles]
        loss = model(**batch(singles, side)).loss
    want = sum(n * one for n, one in zip(counts, each, strict=True)) / sum(counts)
    assert far(loss, want) < 2e-6 * float(want)


@every_name
def test_gradients_reach_the_language_model_and_the_tower_under_the_budget(name: str) -> None:
    model, inputs = wrapped(name, max_tokens=BUDGET).train(), example(name)
    model(**inputs).loss.backward()
    plain = gradients(model)
    assert any("visual" in k or "vision" in k for k in plain)
    assert any("language_model" in k for k in plain)
    model.zero_grad()
    newer = getattr(model, "activation_checkpointing_enable", None)  # its name from 5.23 or so on
    (newer or model.gradient_checkpointing_enable)()
    model(**inputs).loss.backward()
    again = gradients(model)
    assert plain.keys() == again.keys()
    assert all(far(plain[k], again[k]) <= 1e-6 * (1 + float(plain[k].abs().max())) for k in plain)


def over_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss as who computes it by hand does."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


@every_name
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_beside_labels_are_over_the_callers_ids(name: str, side: str) -> None:
    """In evaluation with labels, and in training without, where they are held beside labels."""
    model = wrapped(name, max_tokens=BUDGET)
    inputs = batch([example(name), example(name, QUESTIONS[1], "No")], side)
    labels = inputs["labels"]
    with torch.no_grad():
        out = model(**inputs)
        assert out.logits.shape[:2] == labels.shape
        assert far(over_labels(out.logits, labels), out.loss) < 1e-6 * float(out.loss)
        model.train()
        unlabelled = {k: v for k, v in inputs.items() if k != "labels"}
        assert far(model(**unlabelled).logits, out.logits) < 1e-5
        assert model(**inputs).logits.shape[1] < labels.shape[1]  # of which nobody reads
        model.eval()
        assert model(**unlabelled).logits.shape[1] < labels.shape[1]


class Examples(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, name: str) -> None:
        answers = ("Yes", "No", "A cat", "Home")
        self.all = [example(name, q, a) for q, a in zip(QUESTIONS, answers, strict=True)]

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.all[i]


def trainer(name: str, model: Any, folder: Path, **how: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=2,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=False,
        **how.pop("arguments", {}),
    )
    data = Examples(name)
    collate = how.pop("collate", lambda rows: batch(rows, "right"))
    return Trainer(
        model, arguments, data_collator=collate, train_dataset=data, eval_dataset=data, **how
    )


@every_name
@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}])
def test_trainer_trains_as_unwrapped_when_all_is_kept(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for model in (bare_model(name), wrapped(name, max_tokens=PLENTY)):
        one = trainer(name, model, tmp_path, arguments=dict(arguments))
        result = one.train()
        weights = {k: p.detach() for k, p in model.named_parameters()}
        found.append((result.training_loss, weights))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][k], found[1][1][k]) for k in found[0][1])


@every_name
def test_trainer_evaluates_words_where_their_labels_are(name: str, tmp_path: Path) -> None:
    """compute_metrics gets logits beside the labels of the caller's prompts."""
    model = wrapped(name, max_tokens=BUDGET)
    shapes: list[Any] = []

    def accuracy(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions
        logits = torch.tensor(logits[0] if isinstance(logits, tuple) else logits)
        labels = torch.tensor(prediction.label_ids)
        shapes.append((logits.shape, labels.shape))
        return {"by_hand": float(over_labels(logits, labels))}

    whole = {"per_device_eval_batch_size": 4}
    one = trainer(name, model, tmp_path, compute_metrics=accuracy)
    one.args.per_device_eval_batch_size = whole["per_device_eval_batch_size"]
    found = one.evaluate()
    (logits, labels) = shapes[0]
    assert logits[:2] == labels
    assert found["eval_by_hand"] == pytest.approx(found["eval_loss"], rel=1e-5)
    one.args.per_device_eval_batch_size = 2  # batches of other lengths are put together
    assert one.evaluate()["eval_by_hand"] > 0


@every_name
def test_trainer_trains_under_the_budget(name: str, tmp_path: Path) -> None:
    model = wrapped(name, max_tokens=BUDGET)
    seen = seen_by_decoder(model)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    result = trainer(name, model, tmp_path).train()
    assert 0 < result.training_loss < 100
    assert any(not torch.equal(before[k], p) for k, p in model.named_parameters())
    longest = max(one["input_ids"].shape[1] for one in Examples(name).all)
    assert max(lengths(seen)) < longest


@every_name
def test_trainers_that_smooth_labels_or_bring_a_loss(name: str, tmp_path: Path) -> None:
    def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return over_labels(outputs.logits, labels)

    for how in ({"arguments": {"label_smoothing_factor": 0.1}}, {"compute_loss_func": loss_of}):
        result = trainer(name, wrapped(name, max_tokens=BUDGET), tmp_path, **how).train()
        assert 0 < result.training_loss < 100


@every_name
def test_predict_with_generate(name: str, tmp_path: Path) -> None:
    model = wrapped(name, max_tokens=BUDGET)
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        per_device_eval_batch_size=1,
        predict_with_generate=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )

    def prompts(rows: list[Any]) -> dict[str, Any]:
        own = prompt(name)
        return {**own, "labels": own["input_ids"]}

    one = Seq2SeqTrainer(model, arguments, data_collator=prompts, eval_dataset=Examples(name))
    found = one.predict(Examples(name), max_new_tokens=3, do_sample=False)
    inputs = prompt(name)
    want = greedy(model, inputs, max_new_tokens=3)[0].tolist()
    assert found.predictions[0].tolist()[: len(want)] == want


@every_name
def test_in_bf16_and_under_autocast(name: str) -> None:
    inputs = example(name)
    pixels = {k: v.bfloat16() if v.is_floating_point() and v.dim() > 1 else v
              for k, v in inputs.items()}  # fmt: skip
    with torch.no_grad():
        half = bare_model(name).to(torch.bfloat16)
        want = half(**pixels).logits
        model = wrapped(name, max_tokens=PLENTY).to(torch.bfloat16)
        assert torch.equal(model(**pixels).logits, want)
        small = wrapped(name, max_tokens=BUDGET)
        with torch.autocast("cpu", torch.bfloat16):
            loss = small(**inputs).loss
        assert far(loss, small(**inputs).loss) < 0.5
        assert small.to(torch.bfloat16)(**pixels).logits.isfinite().all()


@pytest.mark.slow
def test_two_processes_train_together() -> None:
    family("llava_onevision")  # or skipped, where transformers has no way in
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).with_name("on_two_devices.py")
    done = subprocess.run(
        [*command, str(script), "llava_onevision"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.count("same gradients") == 2, done.stderr[-2000:]
