"""What `bvllm bench` prints: a model, a video, the tables, and the files that were asked for."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bvllm_adapters.bench.figure import write_figure
from bvllm_adapters.bench.fits import free_memory
from bvllm_adapters.bench.measure import QUESTION, bench, count
from bvllm_adapters.bench.published import build, weights_bytes
from bvllm_adapters.bench.rows import Row
from bvllm_adapters.bench.table import growth, table
from bvllm_adapters.bench.unwrapped import own_way
from bvllm_adapters.checks import check_count
from bvllm_adapters.cli.asked_model import asked_model
from bvllm_adapters.cli.placement import device_of, dtype_of
from bvllm_adapters.evaluation.needle import DEMO_VIDEO, demo_haystack
from bvllm_adapters.hosts.base import base_model, tokenizer_of
from bvllm_adapters.video.read import open_source


def report(options: argparse.Namespace) -> None:
    """Print it. Raises ValueError, naming the option, what came and what was wanted."""
    for name in ("json", "figure"):
        file: Path | None = getattr(options, name)
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"--{name}: got {file}, wanted a file in a folder that is there")
    if options.threads is not None:
        torch.set_num_threads(check_count("--threads", options.threads))
    device = device_of(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what is free, and named, is asked of the current one
    dtype = dtype_of(options.dtype, device, small=options.host is not None)
    video = DEMO_VIDEO if options.video is None else options.video
    seconds = len(open_source(video, fps=1.0))
    frames = options.frames or [seconds]

    model, processor, note = _model(options, device, dtype)
    asked = demo_haystack().questions[0].text if options.model is None else QUESTION
    settings: dict[str, Any] = {
        "frames": frames,
        "max_tokens": options.max_tokens,
        "new_tokens": options.new_tokens,
        "question": asked,
    }
    rows: list[Row]
    if note is not None:
        rows = count(model, processor, video, note=note, **settings)
    else:
        runs = 2 * (1 + options.repeats) * len(set(frames))
        with tqdm(total=runs, unit="answer", leave=False, disable=None) as bar:
            rows = bench(
                model, processor, video, repeats=options.repeats, progress=bar.update, **settings
            )
    again = f", over and over for more than its {seconds} s" if max(frames) > seconds else ""
    print(f"model     {type(base_model(model)).__name__}, {str(dtype).removeprefix('torch.')}")
    print(f"unwrapped {own_way(base_model(model)).name}")
    print(f"video     {Path(video).name} at 1 frame a second{again}")
    print(f"on        {_machine(device)}, torch {torch.__version__}")
    if note is None:
        print(f"seconds   median of {options.repeats} answers of {options.new_tokens} tokens")
    print(f"\n{table(rows)}")
    print(growth(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([row.to_dict() for row in rows], indent=2) + "\n")
    if options.figure is not None:
        write_figure(rows, options.figure)


def _model(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any, str | None]:
    """A wrapped or native model and its processor; and why it is not run, if it is not."""
    if options.host is not None:
        if options.adapter is not None:
            raise ValueError(f"--adapter: got {options.adapter} beside --host, wanted --model")
        model, processor = build(options.host, dtype=dtype)
        weights, room = weights_bytes(model), free_memory(device)
        if device.type != "cuda":
            return model, processor, f"{weights / 1e9:.0f} GB of weights would take hours on a CPU"
        if room is not None and weights > 0.9 * room:
            gigabytes = f"{weights / 1e9:.0f} GB of weights, {room / 1e9:.0f} GB are free"
            return model, processor, gigabytes
        return *build(options.host, device=device, dtype=dtype), None
    model, processor = asked_model(
        options.model, options.adapter, untrained=True, dtype=dtype, device=device
    )
    if tokenizer_of(model).chooses_untrained:
        raise ValueError(
            f"--model: got {options.model}, whose frames are chosen without training, wanted one "
            "with a learned tokenizer: others' stages are told by the trace of `bvllm ask` alone"
        )
    return model, processor, None


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    return f"CPU ({name}), {torch.get_num_threads()} thread(s)"
