"""A run: a config in, a trained adapter out."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from bvllm_adapters.hosts.adapter import TOKENIZER, tokenizer_of
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.host import Host
from bvllm_adapters.hosts.load import load
from bvllm_adapters.hosts.warm_start import from_image_model, from_instructblip
from bvllm_adapters.hosts.wrap import wrap
from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.host import HostTraining
from bvllm_adapters.training.rows import Rows, read_rows
from bvllm_adapters.training.samples import Collate, Samples
from bvllm_adapters.training.stages import choose_parameters
from bvllm_adapters.training.trainer import AdapterTrainer
from bvllm_adapters.weights.hub import local_folder

CONFIG_FILE = "training.yaml"
# What a run may change when it goes on, as it does not change what is learned.
FREE = frozenset(
    "output batch_per_device gradient_checkpointing deepspeed workers max_skipped "
    "save_every keep log_every report_to".split()
)

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
        ValueError: for a config that does not fit the data, the model or the devices; an output
            folder that holds checkpoints and is not to be resumed, or none that is; too many rows
            that are malformed or cannot be read.
    """
    checkpoint = _checkpoint(config, resume)
    rows = checked_rows(config)
    draws = config.steps(len(rows)) * config.global_batch
    arguments = training_arguments(config, len(rows))
    set_seed(config.seed)
    model, host = prepared(config)
    if arguments.should_save and not resume:
        config.save(config.output / CONFIG_FILE)
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        data_collator=Collate(host),
        samples=Samples.of(config, rows, host),
        draws=draws,
        max_skipped=config.max_skipped,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    # Without the autocast that accelerate put around its forward().
    trained: nn.Module = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return trained.eval()


def checked_rows(config: TrainingConfig) -> Rows:
    """All rows; the malformed ones are named, and too many of them are an error."""
    rows = read_rows(config.data)
    for malformed in rows.malformed:
        log.warning("skipped %s", malformed)
    count = len(rows) + len(rows.malformed)
    if len(rows.malformed) > config.max_skipped * count:
        raise ValueError(
            f"data: got {len(rows.malformed)} malformed rows of {count}, wanted "
            f"{config.max_skipped:.2%} at most (max_skipped); the first: {rows.malformed[0]}"
        )
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
    _wrap(model, host, config)
    choose_parameters(model, config)
    if config.instructblip is not None:  # into float32 by now
        started = from_instructblip(tokenizer_of(model), config.instructblip)
        log.info("%s: %s", config.instructblip, started)
    if config.scout is not None:
        log.info("%s: %s", config.scout, from_image_model(tokenizer_of(model), config.scout))
    processor = host.processor(local_folder(config.model, "config.json"))
    return model, cast(HostTraining, host.training(processor))


def _wrap(model: nn.Module, host: Host, config: TrainingConfig) -> None:
    settings = dict(config.tokenizer)
    if config.adapter is not None:
        wrap(model, adapter=config.adapter, max_tokens=settings.get("max_tokens"))
    elif hasattr(model, TOKENIZER) and set(settings) <= {"max_tokens"}:  # a native model's own
        own = tokenizer_of(model).config.max_tokens
        wrap(model, max_tokens=settings.get("max_tokens", own))
    else:
        wrap(model, config=replace(host.config(model), **settings))


def training_arguments(config: TrainingConfig, rows: int) -> TrainingArguments:
    """The Trainer's, with the global batch kept whatever the number of devices."""
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    steps = config.steps(rows)
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
        save_total_limit=config.keep,
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


def _checkpoint(config: TrainingConfig, resume: bool) -> str | None:
    """The last one in the output folder, to go on from."""
    # Written last, so that a checkpoint without it was interrupted.
    states = config.output.glob("checkpoint-*/trainer_state.json")
    found = sorted((state.parent for state in states), key=lambda at: int(at.name[11:]))
    if not resume:
        if found:
            raise ValueError(f"output: got {found[-1]} in it, wanted to resume, or another folder")
        return None
    if not found:
        raise ValueError(f"resume: got no checkpoint in {config.output}, wanted one to go on from")
    begun, now = TrainingConfig.load(config.output / CONFIG_FILE).to_dict(), config.to_dict()
    other = [name for name in now if now[name] != begun[name] and name not in FREE]
    if other:
        raise ValueError(
            f"resume: got another {', '.join(other)} than {config.output / CONFIG_FILE}, "
            f"wanted no change but of {sorted(FREE)}"
        )
    return str(found[-1])
