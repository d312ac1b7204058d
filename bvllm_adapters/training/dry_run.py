"""A look at a run before it starts: files, decoded samples, lengths, and what would be trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

from bvllm_adapters.config import plan
from bvllm_adapters.hosts.base import tokenizer_of
from bvllm_adapters.question import IGNORED_LABEL
from bvllm_adapters.training.chat import tokenized
from bvllm_adapters.training.checkpoints import check_same_data, last_checkpoint
from bvllm_adapters.training.config import TrainingConfig
from bvllm_adapters.training.conversations import RowError
from bvllm_adapters.training.host import Example, HostTraining
from bvllm_adapters.training.needs import check_media, check_needs, check_room
from bvllm_adapters.training.rows import Rows
from bvllm_adapters.training.run import checked_rows, prepared, validation_rows
from bvllm_adapters.training.samples import Samples, Skipped
from bvllm_adapters.training.stages import parameter_counts

SHOWN = 10  # samples, and names of missing files
COUNTED = 1000  # rows whose ids are counted


def dry_run(config: TrainingConfig, *, resume: bool = False) -> Iterator[str]:
    """What a run would do, line by line; nothing is written.

    Args:
        resume: as the run itself would be.

    Raises:
        ValueError: as the run itself would, and for more missing files than `max_skipped` allows.
    """
    check_needs(config)
    checkpoint = last_checkpoint(config, resume)
    if checkpoint is not None:
        yield f"resumes    {checkpoint}"
    rows, validation = checked_rows(config), validation_rows(config)
    if checkpoint is not None:
        check_same_data(config, rows)
    yield from _rows(rows)
    yield from _files(rows)
    model, host = prepared(config)
    yield from _parameters(model)
    yield from _steps(config, len(rows))
    needed, free = check_room(config, model, config.steps(len(rows)))
    yield f"room       {needed / 1e9:.3f} GB at most of {free / 1e9:.3f} GB in {config.output}"
    yield from _samples(config, rows, model, host)
    yield from _lengths(config, rows, host)
    if validation is not None:
        yield from _validation(config, validation, host)
    check_media(rows, "data", most=config.max_skipped)


def _rows(rows: Rows) -> Iterator[str]:
    kinds: Counter[str] = Counter()
    turns: Counter[int] = Counter()
    for row in rows:
        kinds["+".join(sorted({medium.kind for medium in row.media})) or "text"] += 1
        turns[len(row.turns) // 2] += 1
    yield f"rows       {len(rows)}, and {len(rows.malformed)} malformed"
    yield from (f"           malformed: {name}" for name in rows.malformed[:SHOWN])
    yield f"           {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"
    yield f"           {', '.join(f'{n} of {k} turns' for k, n in sorted(turns.items())[:SHOWN])}"


def _files(rows: Rows) -> Iterator[str]:
    gone = check_media(rows, "data", most=1)
    paths = {medium.path for row in rows for medium in row.media}
    yield f"files      {len(paths)}, of which {len(gone)} are missing"
    yield from (f"           missing: {path}" for path in gone[:SHOWN])


def _parameters(model: nn.Module) -> Iterator[str]:
    counts = parameter_counts(model)
    yield f"trained    {sum(trained for _, trained, _ in counts):,} parameters"
    yield from (
        f"           {part:16} {trained:15,} of {all_:15,}" for part, trained, all_ in counts
    )


def _steps(config: TrainingConfig, rows: int) -> Iterator[str]:
    yield (
        f"steps      {config.steps(rows)} of {config.global_batch} rows; on one device "
        f"{config.accumulation(1)} batches of {config.batch_per_device} each"
    )
    if config.selector_learns != "soft":
        yield (
            f"reads      {config.answer_reads} of each row, by {config.selector_learns}, with a "
            "backward pass through the selector alone"
        )


def _samples(config: TrainingConfig, rows: Rows, model: Any, host: HostTraining) -> Iterator[str]:
    samples = Samples.of(config, rows, host)
    settings = tokenizer_of(model).config
    for index in _evenly(len(rows), SHOWN):
        sample = samples[0, index]
        if isinstance(sample, Skipped):
            yield f"sample     cannot be read: {sample}"
            continue
        yield f"sample     {sample.name}"
        yield f"           question: {sample.question[:100]!r}"
        yield f"           {_counts(sample)}, {_visuals(sample, settings, host)}"


def _validation(config: TrainingConfig, rows: Rows, host: HostTraining) -> Iterator[str]:
    """Some of its rows, of which each has to be readable."""
    samples = Samples.of(config, rows, host)
    for index in _evenly(len(rows), SHOWN):
        sample = samples[0, index]
        if isinstance(sample, Skipped):
            raise ValueError(f"validation: got {sample}, wanted rows that can all be read")
    every = config.validate_every or config.save_every
    yield f"validates  {len(rows)} rows, each {every} steps and after the last"


def _counts(example: Example) -> str:
    learned = int((example.labels != IGNORED_LABEL).sum())
    return f"{len(example.input_ids)} ids, {learned} of them learned"


def _visuals(example: Example, settings: Any, host: HostTraining) -> str:
    if not example.visuals:
        return "no visual tokens"
    frames = [len(visual.pixels) for visual in example.visuals]
    shown = ", ".join(
        f"{visual.kind} of {count} frames" if visual.kind == "video" else "image"
        for visual, count in zip(example.visuals, frames, strict=True)
    )
    if settings.sampler == "none":  # those that the prompt has places for
        most = sum(int(i) in host.placeholders for i in example.input_ids)
        most = min(most, settings.max_tokens or most)
    else:
        most = plan(settings, frames, training=True)
    return f"{shown}: {most} visual tokens at most"


def _lengths(config: TrainingConfig, rows: Rows, host: HostTraining) -> Iterator[str]:
    """Of ids without visual tokens, and of those that are learned."""
    ids, learned, over = [], [], 0
    indices = _evenly(len(rows), COUNTED)
    for row in (rows[index] for index in indices):
        try:
            row_ids, labels = tokenized(row, host, max_length=10**9)
        except RowError as error:
            yield f"           {row.name}: {error}"
            continue
        ids.append(len(row_ids))
        learned.append(int((labels != IGNORED_LABEL).sum()))
        over += len(row_ids) > config.max_length
    yield f"lengths    of {len(ids)} rows; {over} have more than max_length={config.max_length} ids"
    for name, counts in (("ids", ids), ("learned", learned)):
        if counts:
            at = np.percentile(counts, [0, 50, 95, 100]).round().astype(int)
            yield "           {:8} least {}, median {}, 95 % up to {}, most {}".format(name, *at)


def _evenly(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})
