"""transformers' Trainer, taught what a run of ours holds: an adapter, skipped rows, own noise."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import send_to_device  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME

from bvllm_adapters.context import asking, noise_from
from bvllm_adapters.hosts.adapter import save_adapter
from bvllm_adapters.hosts.base import base_model, tokenizer_of
from bvllm_adapters.question import IGNORED_LABEL
from bvllm_adapters.training.answers_alone import loss_by_frames, loss_by_sets
from bvllm_adapters.training.checkpoints import UNFINISHED, finish
from bvllm_adapters.training.config import Lesson
from bvllm_adapters.training.dummy_video import zero_of
from bvllm_adapters.training.samples import InOrder, Samples, ShuffledRows
from bvllm_adapters.training.stages import restore

FEW = 1000  # rows; the share of skipped ones is of so many at least, or the first would stop it

log = logging.getLogger("bvllm_adapters")


class ValidateLast(TrainerCallback):
    """Validates after the last step, whenever it comes."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control


class AdapterTrainer(Trainer):
    """Modifications of transformers.Trainer:
    - rows come in an order that depends on the seed alone, the same for any number of devices
    - each visual input draws its noise from a seed of its own
    - a frame selector may learn from answers alone, see `training.answers_alone`
    - skipped rows are named, counted and logged, and too many of them are an error
    - a batch gives every trained weight a gradient, of zeros if it has no use for it
    - checkpoints hold the adapter instead of the model, with DeepSpeed too, and are whole or not
      there at all
    - validation leaves torch's generators as they are, so that it changes nothing of the training

    Args:
        samples: what is trained on. validation: what is looked at on the way, and after the last
            step; None: nothing is.
        draws: how many rows a whole run takes. max_skipped: share of them that may be skipped.
        lesson, reads: the config's selector_learns and answer_reads.
        keep: checkpoints that stay; None: all. kwargs: of the Trainer.
    """

    model: Any
    lr_scheduler: Any

    def __init__(
        self,
        *,
        samples: Samples,
        validation: InOrder | None = None,
        draws: int,
        max_skipped: float,
        lesson: Lesson = "soft",
        reads: int = 2,
        keep: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_dataset=samples, eval_dataset=validation, **kwargs)
        if validation is not None:
            self.add_callback(ValidateLast())
        self.keep = keep
        self.aside = False
        self.samples = samples
        self.draws = draws
        self.lesson: Lesson = lesson
        self.reads = reads
        self.likelihoods: list[float] = []  # of answers, since the last log
        self.max_skipped = max_skipped
        self.drawn = 0
        self.skipped = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        return ShuffledRows(len(self.samples), self.draws, self.samples.seed)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Modifications: to the device only. With DeepSpeed, the Trainer would put times and
        pixels into bfloat16."""
        prepared: dict[str, Any] = send_to_device(inputs, self.args.device)
        return prepared

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch's answers, over the number of answer tokens of the whole step."""
        inputs = dict(inputs)
        drawn, skipped = inputs.pop("drawn"), inputs.pop("skipped")
        if not model.training:
            return self._validated(model, inputs, skipped)
        self._count(drawn, skipped)
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.clamp_min(1)  # all rows may have been skipped
        inputs["use_cache"] = False
        zero = zero_of(tokenizer_of(base_model(self.model)))
        questions, seeds = inputs.pop("questions"), inputs.pop("seeds")
        if self.lesson != "soft":
            with asking(questions):
                loss = self._by_answers(model, inputs, seeds) + zero
            # Where forward() takes a number of labels, the Trainer thinks that it divided by it.
            divided = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            return loss / (self.args.gradient_accumulation_steps if divided else 1)
        with asking(questions), noise_from(seeds):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + zero
        return (loss, outputs) if return_outputs else loss

    def _by_answers(
        self, model: nn.Module, inputs: dict[str, Any], seeds: list[int]
    ) -> Tensor | float:
        """The loss of a row, see `answers_alone`; 0 where it has nothing to learn."""
        words = int((inputs["labels"] != IGNORED_LABEL).sum())
        if not words:
            return 0.0
        selector: Any = tokenizer_of(base_model(self.model)).frame_selector

        def answer_loss() -> Tensor:
            loss: Tensor = model(**inputs).loss
            return loss

        if self.lesson == "frames":
            found = loss_by_frames(selector, answer_loss, seeds, self.reads, words)
        else:
            found = loss_by_sets(selector, answer_loss, seeds, self.reads)
        if found is None:
            return 0.0
        loss, likelihood = found
        self.likelihoods.append(likelihood)
        return loss

    def _validated(self, model: nn.Module, inputs: dict[str, Any], skipped: list[str]) -> Any:
        """The mean loss of a row's answer tokens, whatever is beside it, and the outputs."""
        if skipped:
            raise ValueError(f"validation: got {skipped[0]}, wanted rows that can all be read")
        del inputs["seeds"]
        with asking(inputs.pop("questions")):
            return super().compute_loss(model, inputs | {"use_cache": False}, True)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):  # a DataLoader takes its seed from torch's
            found: dict[str, float] = super().evaluate(*args, **kwargs)
            return found

    def _count(self, drawn: int, skipped: list[str]) -> None:
        self.drawn += drawn
        self.skipped += len(skipped)
        for row in skipped:
            log.warning("skipped %s", row)
        of = max(self.drawn, min(FEW, len(self.samples)))
        if self.skipped > self.max_skipped * of:
            raise ValueError(
                f"data: got {self.skipped} unreadable rows of {self.drawn}, wanted "
                f"{self.max_skipped:.2%} of {of} at most (max_skipped); the last: {skipped[-1]}"
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.likelihoods:
            logs = {**logs, "answer_likelihood": fmean(self.likelihoods)}
            self.likelihoods = []
        super().log({**logs, "skipped_rows": self.skipped}, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(super()._get_output_dir(trial))
        return str(folder / UNFINISHED if self.aside else folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Modifications: written aside, renamed last; then older ones are taken away."""
        output = Path(str(self.args.output_dir))
        if self.args.should_save:
            shutil.rmtree(output / UNFINISHED, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self.aside = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.aside = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written = output / UNFINISHED / f"checkpoint-{self.state.global_step}"
            finish(written, output, self.keep)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            save_adapter(self.model, output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore(self.model, resume_from_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        engine: Any = self.model_wrapped
        engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Modifications: a DeepSpeed checkpoint lacks the frozen weights, which are here."""
        prepare: Any = super()._prepare_for_training
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = prepare(max_steps, train_dataloader, None)
        engine: Any = self.model_wrapped
        engine.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared
