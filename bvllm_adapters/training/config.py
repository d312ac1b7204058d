"""What a run of training is made of: one frozen record, checked when made, kept as YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from bvllm_adapters import checks
from bvllm_adapters.checks import check_count
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.training.files import read_yaml, write_whole
from bvllm_adapters.training.lora_settings import LoraSettings, lora_settings
from bvllm_adapters.training.rows import Source, sources_of

Stage = Literal["alignment", "instruction"]
Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["bf16", "fp32"]
Lesson = Literal["soft", "frames", "sets"]
PARTS = ("frame_selector", "spatial_sampler", "projection")
DEFAULT_PARTS = ("frame_selector", "projection")  # of alignment
NEEDED = ("stage", "model", "data", "output", "learning_rate", "schedule", "global_batch")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One stage of training. Paths are relative to where the command runs.

    Args:
        stage: "alignment" trains parts of the BalancedTokenizer; "instruction" all of it, and a
            LoRA of the language model. The vision tower never trains.
        model: folder or hub id of the host. base: what it changes, if it is a LoRA or projector.
        adapter: folder to begin with, of an earlier stage; None: a new BalancedTokenizer, or the
            native host's own.
        tokenizer: settings of a new one, see `BalancedTokenizerConfig`; beside an adapter only
            max_tokens, in place of its own.
        instructblip: folder or file of InstructBLIP's weights, with which its Q-Formers begin.
        scout: folder or file of weights of an image model, for the encoder that `tokenizer` names
            as its scout's. It does not train, so a new one has to have them.
        data: for each JSON or JSONL file of conversations its `file`, and the folder that its
            `media` are named from (left out: the file's own).
        outside_media: whether `..` in a row may lead out of that folder.
        validation: the same of rows that are not trained on; the mean of their losses is logged as
            eval_loss, each row's being the mean over its answer tokens, without noise.
        validate_every: steps; None: `save_every`. Validated is after the last step too.
        output: folder for checkpoints and the trained adapter.
        train: in alignment, some of frame_selector, spatial_sampler and projection; by default
            frame_selector and projection, as far as the tokenizer has them.
        selector_learns: "soft": by the gradient through soft choices, as in the paper. By answers
            alone, each row of which is read `answer_reads` times: "frames": from which single
            frames make the answer likeliest; "sets": from which choices of frames do. Either is for
            alignment of the selector alone, with batch_per_device 1, on one device.
        fps, max_frames: of videos. max_length: ids of a row before visual tokens come in.
        learning_rate, schedule, weight_decay: of AdamW. max_grad_norm: 0: no clipping.
        warmup: share of the steps in which the learning rate rises.
        global_batch: rows of a step on all devices together. batch_per_device: rows at a time;
            what is left is accumulated.
        epochs: times that each row is seen. max_steps: that many instead, fewer or more than those
            make: rows go round again.
        lora: see `LoraSettings`; alignment has none.
        precision: "bf16": frozen weights and arithmetic in bfloat16, trained weights in float32.
        gradient_checkpointing: activations are computed again instead of kept.
        deepspeed: a DeepSpeed JSON file.
        workers: processes that decode, per device.
        max_skipped: share of unreadable or malformed rows beyond which a run stops.
        save_every, log_every: steps. keep: checkpoints.
        report_to: as transformers names them, such as ["tensorboard"].
        seed: of the order of rows, of noise and of new weights.

    Raises:
        TypeError, ValueError: naming the field, what came and what was wanted.
    """

    stage: Stage
    model: str
    data: tuple[Source, ...]
    output: Path
    learning_rate: float
    schedule: Schedule
    global_batch: int
    base: str | None = None
    adapter: str | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    instructblip: str | None = None
    scout: str | None = None
    train: tuple[str, ...] = ()
    selector_learns: Lesson = "soft"
    answer_reads: int = 8
    fps: float = 1.0
    max_frames: int | None = None
    max_length: int = 2048
    outside_media: bool = False
    validation: tuple[Source, ...] = ()
    validate_every: int | None = None
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_per_device: int = 1
    epochs: float = 1.0
    max_steps: int | None = None
    lora: LoraSettings | None = None
    precision: Precision = "bf16"
    gradient_checkpointing: bool = True
    deepspeed: Path | None = None
    workers: int = 4
    max_skipped: float = 0.01
    save_every: int = 500
    keep: int | None = 2
    log_every: int = 10
    report_to: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        put = object.__setattr__
        checks.check_choice("stage", self.stage, get_args(Stage))
        checks.check_choice("schedule", self.schedule, get_args(Schedule))
        checks.check_choice("precision", self.precision, get_args(Precision))
        checks.check_choice("selector_learns", self.selector_learns, get_args(Lesson))
        for name in ("model", "base", "adapter", "instructblip", "scout"):
            if name == "model" or getattr(self, name) is not None:
                checks.text(name, getattr(self, name))
        for name in ("output", "deepspeed"):
            if name == "output" or getattr(self, name) is not None:
                put(self, name, checks.path(name, getattr(self, name)))
        for name in "global_batch batch_per_device max_length save_every log_every".split():
            _check_count(name, getattr(self, name))
        for name in ("max_frames", "max_steps", "keep", "validate_every"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name in ("workers", "seed"):
            _check_count(name, getattr(self, name), least=0)
        checks.check_number("epochs", self.epochs, above=0, most=1e6)
        for name in ("learning_rate", "fps"):
            checks.check_number(name, getattr(self, name), above=0)
        for name in ("weight_decay", "max_grad_norm"):
            checks.check_number(name, getattr(self, name), least=0)
        for name in ("warmup", "max_skipped"):
            checks.check_number(name, getattr(self, name), least=0, below=1)
        for name in ("gradient_checkpointing", "outside_media"):
            got = getattr(self, name)
            if not isinstance(got, bool):
                raise TypeError(f"{name}: got {got!r}, wanted True or False")
        put(self, "data", sources_of(self.data))
        if self.validation not in ((), [], None):
            put(self, "validation", sources_of(self.validation, "validation"))
        else:
            put(self, "validation", ())
        put(self, "report_to", checks.several("report_to", self.report_to))
        put(self, "train", checks.several("train", self.train, PARTS))
        self._check_stage()
        self._check_lesson()
        self._check_tokenizer()

    def _check_stage(self) -> None:
        put = object.__setattr__
        if self.stage == "instruction":
            if self.train not in ((), PARTS):
                raise ValueError(f"train: got {list(self.train)} in instruction, wanted all parts")
            put(self, "train", PARTS)
            put(self, "lora", lora_settings(self.lora or {}))
            return
        put(self, "train", self.train or DEFAULT_PARTS)
        if self.lora is not None:
            raise ValueError(f"lora: got {self.lora} in alignment, wanted none")

    def _check_lesson(self) -> None:
        _check_count("answer_reads", self.answer_reads, least=2)
        if self.selector_learns == "soft":
            return
        # What is read of a row is judged by that row's loss, with all other parts as they are.
        for name, wanted in (
            ("stage", "alignment"),
            ("train", ("frame_selector",)),
            ("batch_per_device", 1),
            ("deepspeed", None),
        ):
            got = getattr(self, name)
            if got != wanted:
                raise ValueError(
                    f"{name}: got {got!r} with selector_learns={self.selector_learns!r}, "
                    f"wanted {wanted!r}"
                )

    def _check_tokenizer(self) -> None:
        if not isinstance(self.tokenizer, Mapping):
            raise ValueError(f"tokenizer: got {self.tokenizer!r}, wanted settings by name")
        known = [setting.name for setting in fields(BalancedTokenizerConfig)]
        if self.adapter is not None:
            known = ["max_tokens"]
            for name in ("instructblip", "scout"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: got it beside adapter, wanted one to begin with")
        unknown = sorted(map(str, set(self.tokenizer) - set(known)))
        if unknown:
            raise ValueError(f"tokenizer: got {unknown}, wanted some of {known}")
        scout = self.tokenizer.get("scout")
        encoder = scout.get("architecture") if isinstance(scout, Mapping) else None
        if (encoder is None) != (self.scout is None):
            raise ValueError(
                f"scout: got {self.scout!r} with tokenizer.scout.architecture={encoder!r}, wanted "
                "weights for an encoder that is named there"
            )

    def accumulation(self, devices: int) -> int:
        """How many batches of each device make a step.

        Raises:
            ValueError: where no number of them makes the global batch.
        """
        at_once = devices * self.batch_per_device
        if self.global_batch % at_once:
            raise ValueError(
                f"global_batch: got {self.global_batch}, wanted a multiple of {at_once}: "
                f"{devices} devices with batch_per_device={self.batch_per_device}"
            )
        return self.global_batch // at_once

    def steps(self, rows: int) -> int:
        """How many whole steps so many rows make, or as many as `max_steps` says.

        Raises:
            ValueError: for no rows or, without max_steps, fewer than a step takes.
        """
        if rows and self.max_steps is not None:
            return self.max_steps
        steps = math.floor(rows * self.epochs / self.global_batch)
        if steps == 0:
            raise ValueError(
                f"data: got {rows} rows for {self.epochs:g} epochs, "
                f"wanted enough for a global_batch of {self.global_batch}"
            )
        return steps

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Of plain values by name; an unknown or missing name is a ValueError."""
        checks.check_names(values, [each.name for each in fields(cls)], NEEDED)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The reverse of `from_dict`, in what YAML can hold."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def load(cls, file: str | Path) -> TrainingConfig:
        """Of a YAML file; whatever is wrong with it is a ValueError that names it."""
        values = read_yaml("config", file)
        if not isinstance(values, Mapping):
            raise ValueError(f"config: {file}: got {type(values).__name__}, wanted names, values")
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config: {file}: {error}") from error

    def save(self, file: Path) -> None:
        """As YAML, whole or not at all; folders are made."""
        write_whole(file, yaml.safe_dump(self.to_dict(), sort_keys=False))


def _check_count(name: str, value: Any, *, least: int = 1) -> None:
    check_count(name, value, least=least)
    if value >= 2**31:
        raise ValueError(f"{name}: got {value:,}, wanted less than {2**31:,}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
