"""A run: a config in, a trained adapter out."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.load import load
from bvllm_adapters.hosts.warm_start import from_image_model, from_instructblip
from bvllm_adapters.hosts.wrap import wrap
from bvllm_adapters.training.checkpoints import begin, check_same_data, last_checkpoint
from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.host import HostTraining, training_of
from bvllm_adapters.training.needs import check_media, check_needs, check_room
from bvllm_adapters.training.rows import Rows, read_rows
from bvllm_adapters.training.samples import Collate, InOrder, Samples
from bvllm_adapters.training.stages import choose_parameters
from bvllm_adapters.training.trainer import AdapterTrainer
from bvllm_adapters.weights.hub import local_folder

log = logging.getLogger("bvllm_adapters")


def train(
    config: TrainingConfig,
    *,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> nn.Module:
    """Train one stage; the output folder then holds the adapter, which `wrap(adapter=...)` takes.

    Under torchrun or accelerate launch, each process calls it.

    Args:
        resume: go on from the last checkpoint in the output folder.
        callbacks: of transformers' Trainer.

    Returns:
        The trained model, wrapped, in eval mode; what is trained is in float32.

    Raises:
        ValueError: for a config that does not fit the data, the model, the machine or the devices;
            an output folder that holds checkpoints and is not to be resumed, or none that is; data
            that are others than those a resumed run began with; too many rows that are malformed or
            cannot be read, and any of validation.
    """
    check_needs(config)
    checkpoint = last_checkpoint(config, resume)
    rows, validation = checked_rows(config), validation_rows(config)
    if resume:
        check_same_data(config, rows)
    steps = config.steps(len(rows))
    arguments = training_arguments(config, steps)
    set_seed(config.seed)
    model, host = prepared(config)
    check_room(config, model, steps)
    if arguments.should_save and not resume:
        begin(config, rows)
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        data_collator=Collate(host),
        samples=Samples.of(config, rows, host),
        validation=None if validation is None else InOrder(Samples.of(config, validation, host)),
        draws=steps * config.global_batch,
        lesson=config.selector_learns,
        reads=config.answer_reads,
        max_skipped=config.max_skipped,
        keep=config.keep,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()
    # Without the autocast that accelerate put around its forward().
    trained: nn.Module = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return trained.eval()


def checked_rows(config: TrainingConfig) -> Rows:
    """All rows; the malformed ones are named, and too many of them are an error."""
    rows = read_rows(config.data, outside=config.outside_media)
    for malformed in rows.malformed:
        log.warning("skipped %s", malformed)
    count = len(rows) + len(rows.malformed)
    if len(rows.malformed) > config.max_skipped * count:
        raise ValueError(
            f"data: got {len(rows.malformed)} malformed rows of {count}, wanted "
            f"{config.max_skipped:.2%} at most (max_skipped); the first: {rows.malformed[0]}"
        )
    return rows


def validation_rows(config: TrainingConfig) -> Rows | None:
    """Those of validation, of which none may be malformed or without its files: the loss of fewer
    rows would be another loss. None: there are none."""
    if not config.validation:
        return None
    rows = read_rows(config.validation, name="validation", outside=config.outside_media)
    if rows.malformed or not len(rows):
        told = rows.malformed[0] if rows.malformed else "no rows"
        raise ValueError(f"validation: got {told}, wanted rows that can all be read")
    check_media(rows, "validation", most=0)
    return rows


def prepared(config: TrainingConfig) -> tuple[nn.Module, HostTraining]:
    """The wrapped host with what the stage trains made trainable, and how it is trained."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = load(config.model, base=config.base, dtype=dtype)
    if hasattr(model, "_bvllm_host"):
        raise ValueError(f"model: got {config.model}, which is wrapped, wanted the host alone")
    host: Any = host_of(model)
    if not hasattr(host, "training"):
        raise ValueError(f"model: got a {type(model).__name__}, whose host cannot be trained here")
    wrap(model, adapter=config.adapter, **config.tokenizer)
    choose_parameters(model, config)
    if config.instructblip is not None:  # into float32 by now
        started = from_instructblip(tokenizer_of(model), config.instructblip)
        log.info("%s: %s", config.instructblip, started)
    if config.scout is not None:
        log.info("%s: %s", config.scout, from_image_model(tokenizer_of(model), config.scout))
    processor = host.processor(local_folder(config.model, "config.json"))
    return model, training_of(host, processor, model)


def training_arguments(config: TrainingConfig, steps: int) -> TrainingArguments:
    """The Trainer's, with the global batch kept whatever the number of devices."""
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    if config.selector_learns != "soft" and devices > 1:
        raise ValueError(
            f"selector_learns: got {config.selector_learns!r} on {devices} devices, wanted 'soft' "
            "or one device"
        )
    # transformers 5.23 has another name for it.
    known = {each.name for each in fields(TrainingArguments)}
    old, new = "gradient_checkpointing", "activation_checkpointing"
    name = new if new in known else old
    recompute: dict[str, Any] = {
        name: config.gradient_checkpointing,
        f"{name}_kwargs": {"use_reentrant": False},
    }
    arguments = TrainingArguments(
        output_dir=str(config.output),
        max_steps=steps,
        per_device_train_batch_size=config.batch_per_device,
        gradient_accumulation_steps=config.accumulation(devices),
        optim="adamw_torch",
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=math.ceil(config.warmup * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        deepspeed=None if config.deepspeed is None else str(config.deepspeed),
        dataloader_num_workers=config.workers,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        save_steps=config.save_every,
        save_total_limit=None,  # the trainer takes older ones away itself
        eval_strategy="steps" if config.validation else "no",
        eval_steps=config.validate_every or config.save_every,
        # A row at a time, so that its loss is its own whatever stands beside it.
        per_device_eval_batch_size=1,
        prediction_loss_only=True,
        report_to=list(config.report_to),
        seed=config.seed,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        average_tokens_across_devices=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        **recompute,
    )
    # One device a process: several in one would be given parts of a batch by cutting its tensors.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
