"""The paper's Table 10 anew: how long B-VLLM and Qwen2-VL-7B take to answer about a video.

    python examples/table10.py --json table10.json     # on a CUDA device; without one, in small
    python examples/table10.py --count                 # FLOPs of the true sizes, on any machine

B-VLLM is EVA-CLIP-g, the BalancedTokenizer and Qwen2-7B; Qwen2-VL-7B is that of transformers. Both
are bf16 with random weights, and answer in 32 tokens about 4, 8 and 12 minutes at 1 frame a
second. Time runs from pixels on the device to the last token; decoding is the same for both.

How many tokens Qwen2-VL makes of a video depends on how it is resized, which the paper does not
tell. So there are several settings, each with the tokens that qwen-vl-utils and the published
processor make of it.

B-VLLM is measured as it was published, and with what this library adds: the tower's patches not
kept but looked at again, 16 frames at a time; every other frame skipped as a repetition; a scout
(the tower itself, at half the size) that chooses the frames, of which the tower sees no others.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cache
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.bench.counted import Counter, Setting
from bvllm_adapters.bench.published import build, random_model
from bvllm_adapters.bench.reading import Reading
from bvllm_adapters.bench.shapes import in_shape
from bvllm_adapters.bench.table import quantity
from bvllm_adapters.config import ScoutConfig
from bvllm_adapters.features import FrameFeatures
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.ledger import answering, ledger, peak_memory, stage
from bvllm_qwen2.configuration import QWEN2_7B

MINUTES = (4, 8, 12)
NEW_TOKENS = 32
TEXT_TOKENS = 64
BUDGET = 576
CHUNK = 16  # frames that B-VLLM's tower sees at a time
QUESTION = "What is the man with the yellow helmet doing after he has left the house?"
PAPER = {"B-VLLM": (3.16, 5.6, 7.9), "Qwen2-VL": (6.94, 24.6, 26.2)}  # s, on a GPU it leaves unsaid
VARIANTS = ("as published", "patches again", "half skipped", "scout")

# Setting -> for 4, 8 and 12 minutes: the pairs of frames that Qwen2-VL sees as one, and the rows
# and columns of tokens that it makes of each. What costs least comes first.
QWEN2_VL = {
    "224 x 224": ((120, 8, 8), (240, 8, 8), (360, 8, 8)),
    "336 x 336": ((120, 12, 12), (240, 12, 12), (360, 12, 12)),
    "qwen-vl-utils, 1 fps": ((120, 10, 19), (240, 8, 15), (360, 8, 15)),
    "qwen-vl-utils, 2 fps": ((240, 8, 15), (384, 8, 15), (384, 8, 15)),
    "360 * 420 px, 1 fps": ((120, 10, 18), (240, 10, 18), (360, 10, 18)),
    "360 * 420 px, 2 fps": ((240, 10, 18), (384, 10, 18), (384, 10, 18)),
    "360p, 1 fps": ((120, 13, 23), (240, 13, 23), (360, 13, 23)),
    "720p, 1 fps": ((120, 20, 36), (240, 20, 36), (360, 20, 36)),
    "720p, older limit": ((120, 26, 46), (240, 26, 46), (360, 26, 46)),
}
USUAL = "qwen-vl-utils, 1 fps"

# The same models in small, asked about a tenth of each video.
SMALL_LLM = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "bos_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SMALL_EVA = {
    "model_type": "bvllm_eva_vision", "hidden_size": 48, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
SMALL_QFORMER = {"qformer_width": 48, "qformer_layers": 2, "qformer_heads": 4}
SMALL_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 4}
SMALL_IDS = {
    "image_token_id": 990, "video_token_id": 991,
    "vision_start_token_id": 992, "vision_end_token_id": 993,
}  # fmt: skip


class TimeIsOver(BaseException):
    """Raised wherever the script is when its time is over; no library's business to catch."""


@dataclass
class Result:
    """One model in one setting at one length. None: not measured, for what the note says.

    Args:
        frames: that it is shown. tokens: visual ones that its language model reads.
        flops: of each stage, counted. stages: median seconds of each.
        seconds, fastest, slowest: of the whole answer: median and extremes of the repetitions.
        peak_bytes: allocated on the device, or resident of the process on a CPU.
    """

    model: str
    setting: str
    minutes: int
    frames: int
    tokens: int
    flops: dict[str, int]
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    note: str | None = None
    device: str = ""
    dtype: str = ""
    reduced: bool = False
    date: str = field(default_factory=lambda: date.today().isoformat())


@dataclass
class Table:
    """The rows so far, and what holds for all.

    Args:
        device: "meta": FLOPs are counted, nothing is run. deadline: of time.monotonic().
        file: that each row is written to when it is done, so that a run may be stopped.
    """

    device: torch.device
    reduced: bool
    repeats: int
    deadline: float
    file: Path | None = None
    results: list[Result] = field(default_factory=list)
    flops_per_second: float | None = None  # of the last row: what the next one will take

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.reduced else torch.bfloat16

    @property
    def shorter(self) -> int:
        """So many times shorter are the videos."""
        return 10 if self.reduced else 1

    @property
    def new_tokens(self) -> int:
        return 8 if self.reduced else NEW_TOKENS

    def generate(self, compiled: bool) -> dict[str, Any]:
        """Settings of generate(): so many new tokens exactly. With a static cache, transformers
        compiles what makes a further token and replays it as a CUDA graph."""
        static = {"cache_implementation": "static"} if compiled else {}
        return {
            "min_new_tokens": self.new_tokens, "max_new_tokens": self.new_tokens,
            "do_sample": False, **static,
        }  # fmt: skip

    def add(self, result: Result, prepare: Callable[[], Callable[[], object]]) -> None:
        """Answer once for the memory and to warm up, then time it; write the row.

        Args:
            prepare: brings model and pixels onto the device, and gives what answers.
        """
        result.device, result.dtype = device_name(self.device), str(self.dtype)[6:]
        result.reduced = self.reduced
        result.note = self._hindrance(result)
        if result.note is None:
            try:
                with torch.inference_mode(), time_limit(self.deadline - time.monotonic()):
                    self._measure(result, prepare())
            except TimeIsOver:
                if not result.repeats:  # else there are fewer of them
                    result.note = "stopped: the time was over"
            except torch.cuda.OutOfMemoryError:
                result.note = "out of memory"
            except Exception as error:  # nobody watches: the other rows are worth going on for
                result.note = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
        free(self.device)
        self.results.append(result)
        print(line(result), flush=True)
        self.write()

    def next_until(self, deadline: float) -> None:
        """Another model comes, of which nothing is known yet."""
        self.deadline, self.flops_per_second = deadline, None

    def _hindrance(self, result: Result) -> str | None:
        if self.device.type == "meta":
            return "counted"
        left = self.deadline - time.monotonic()
        needed = 0.0
        if self.flops_per_second is not None:
            needed = sum(result.flops.values()) / self.flops_per_second * (1 + self.repeats)
        if needed < left:
            return None
        return f"not begun: {max(left, 0):.0f} s left, about {needed:.0f} s needed"

    def _measure(self, result: Result, answer: Callable[[], object]) -> None:
        with peak_memory() as peaks:
            answer()
        result.peak_bytes = max(peaks.values(), default=None)
        runs, stages = [], defaultdict(list)
        for _ in range(self.repeats):
            with ledger() as seconds:
                runs.append(timed(answer, self.device))
            for name, took in seconds.items():
                stages[name].append(took)
            # After each, since the time may be over before the last.
            result.stages = {name: median(took) for name, took in stages.items()}
            result.seconds, result.repeats = median(runs), len(runs)
            result.fastest, result.slowest = min(runs), max(runs)
            self.flops_per_second = sum(result.flops.values()) / result.seconds

    def write(self) -> None:
        """In one step, so that the file is whole whenever it is read."""
        if self.file is not None:
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps([asdict(row) for row in self.results], indent=2) + "\n")
            part.replace(self.file)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that it takes; on a GPU by CUDA's events."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeIsOver after so many seconds, where the system has a timer for it."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def over(*_: object) -> None:
        raise TimeIsOver

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def free(device: torch.device) -> None:
    """Memory that nothing uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- B-VLLM ---------------------------------------------------------------------------------------


class Spread(FrameSelector):
    """Does the work of choosing, and then takes frames evenly from the whole video.

    Random weights would choose one or two frames over and over, which would be too cheap.
    """

    def choose(
        self, scores: Tensor, generator: Any = None, support: Tensor | None = None
    ) -> Tensor:
        chosen = super().choose(scores, generator, support)
        count, frames = scores.shape
        at = torch.arange(count, device=scores.device) * frames // count
        return torch.zeros_like(chosen).scatter(1, at[:, None], 1.0)


def bvllm_rows(
    table: Table, variants: Sequence[str], *, scout: bool = False, compiled: bool = False
) -> None:
    meta = bvllm_model(table, torch.device("meta"), scout=scout)
    frame = torch.empty(meta.image_size, meta.image_size, 3, dtype=torch.uint8)
    pixels = torch.empty(1, 3, meta.image_size, meta.image_size)
    counter = Counter(meta, Setting(QUESTION, TEXT_TOKENS, table.new_tokens, frame, pixels))

    @cache
    def model() -> Any:
        made = bvllm_model(table, table.device, scout=scout)
        if compiled:
            encoder = made.vision_tower.encoder
            encoder.forward_features = torch.compile(encoder.forward_features)
        return made

    for variant in variants:
        for minutes in MINUTES:
            frames = 60 * minutes // table.shorter
            trace = counter.expected(frames)
            passes = {
                "patches again": frames + len(trace.frames),
                "half skipped": (frames + 1) // 2,
            }.get(variant, trace.tower_passes)
            work = counter.wrapped(replace(trace, tower_passes=passes))
            result = Result(
                "B-VLLM", variant + ", compiled" * compiled, minutes, frames, trace.num_tokens,
                {name: done.flops for name, done in work.items() if done.flops is not None},
            )  # fmt: skip
            table.add(
                result,
                lambda variant=variant, frames=frames: bvllm_answer(
                    table, model(), variant, frames, compiled
                ),
            )


def bvllm_model(table: Table, device: torch.device, *, scout: bool) -> Any:
    sizes: dict[str, Any] = {"balanced_tokenizer": {"max_tokens": BUDGET}}
    if table.reduced:
        sizes["text_config"] = SMALL_LLM | {"model_type": "qwen2"}
        sizes["vision_config"] = SMALL_EVA
        sizes["balanced_tokenizer"] |= SMALL_QFORMER
    name = "BvllmQwen2ForConditionalGeneration"
    model, _ = build(name, device=device, dtype=table.dtype, sizes=sizes)
    if scout:
        config = model.balanced_tokenizer.config
        smaller = ScoutConfig(image_size=model.image_size // 2, width=config.vision_width)
        with torch.device(device):
            tokenizer = BalancedTokenizer(replace(config, scout=smaller))
        model.balanced_tokenizer = tokenizer.to(table.dtype).eval().requires_grad_(False)
    model.balanced_tokenizer.frame_selector.__class__ = Spread
    return model


def bvllm_answer(
    table: Table, model: Any, variant: str, frames: int, compiled: bool
) -> Callable[[], object]:
    """From pixels that are on the device to the last token."""
    words = torch.full((1, TEXT_TOKENS + 1), 100, device=table.device)
    words[0, 20] = model.config.video_token_id
    shape = (frames, 3, model.image_size, model.image_size)
    pixels = torch.randn(shape, dtype=table.dtype, device=table.device)

    def answer() -> None:
        features = see(model, pixels, variant)
        tokens = model.balanced_tokenizer([features], [QUESTION])
        with answering() as at_each_token:
            model.continue_prompts(
                model.splice(words, tokens),
                logits_processor=at_each_token,
                **table.generate(compiled),
            )

    return answer


def see(model: Any, pixels: Tensor, variant: str) -> FrameFeatures:
    """(T, 3, S, S) pixels as the tower sees them, in one of the VARIANTS."""

    def look(part: Tensor) -> tuple[Tensor, Tensor]:
        with stage("tower"):
            feature, patches = zip(*map(model.look, part.split(CHUNK)), strict=True)
            return torch.cat(feature), torch.cat(patches)

    def look_again(indices: Tensor) -> Tensor:
        return look(pixels[indices])[1]

    if variant == "as published":
        return FrameFeatures(*look(pixels))
    if variant == "patches again":
        return FrameFeatures(torch.cat([look(part)[0] for part in pixels.split(CHUNK)]), look_again)
    if variant == "half skipped":
        feature, patches = look(pixels[::2])
        return FrameFeatures(
            feature.repeat_interleave(2, dim=0)[: len(pixels)], lambda i: patches[i // 2]
        )
    with stage("scout"):
        scout = model.balanced_tokenizer.scout
        feature = torch.cat([scout(part, model.look) for part in pixels.split(CHUNK)])
    return FrameFeatures(feature, look_again)


# --- Qwen2-VL -------------------------------------------------------------------------------------


def qwen2_vl_rows(table: Table, settings: Sequence[str], *, compiled: bool = False) -> None:
    meta = qwen2_vl_model(table, torch.device("meta"))
    reading = Reading.of(in_shape(meta))

    @cache
    def model() -> Any:
        return qwen2_vl_model(table, table.device)

    for setting in settings:
        for minutes, (pairs, rows, columns) in zip(MINUTES, QWEN2_VL[setting], strict=True):
            grid = (pairs // table.shorter, rows, columns)
            tokens = prod(grid)
            prompt = TEXT_TOKENS + tokens
            further = range(prompt + 1, prompt + table.new_tokens)
            flops = {
                "tower": vit_flops(meta.config.vision_config, *grid),
                "prefill": reading.flops(1, prompt),
                "generate": sum(reading.flops(length, length) for length in further),
            }
            name = setting + ", compiled" * compiled
            result = Result("Qwen2-VL", name, minutes, 2 * grid[0], tokens, flops)
            table.add(result, lambda grid=grid: qwen2_vl_answer(table, model(), grid, compiled))


def qwen2_vl_model(table: Table, device: torch.device) -> Any:
    llm = SMALL_LLM if table.reduced else QWEN2_7B
    vision = (SMALL_VIT if table.reduced else {}) | {"hidden_size": llm["hidden_size"]}
    # Of half the features of a head, how many tell time, height and width.
    half = llm["hidden_size"] // llm["num_attention_heads"] // 2
    sections = [half // 4, 3 * half // 8, 3 * half // 8]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = Qwen2VLConfig(
        text_config=llm | {"rope_parameters": rope},
        vision_config=vision,
        **(SMALL_IDS if table.reduced else {}),
    )
    model = random_model(lambda: Qwen2VLForConditionalGeneration(config), device, table.dtype)
    return model.eval().requires_grad_(False)


def vit_flops(config: Any, pairs: int, rows: int, columns: int) -> int:
    """Of Qwen2-VL's tower, whose attention looks at one pair of frames at a time."""
    merged = config.spatial_merge_size**2  # patches that become one token
    patches, width = merged * rows * columns, config.embed_dim
    embed = 2 * patches * width * config.in_channels * config.patch_size**2 * 2  # 2 frames
    linear = 2 * patches * width**2 * (4 + 2 * config.mlp_ratio)
    attention = 4 * patches**2 * width
    inner = merged * width
    merge = 2 * rows * columns * inner * (inner + config.hidden_size)
    return pairs * (embed + config.depth * (linear + attention) + merge)


def qwen2_vl_answer(
    table: Table, model: Any, grid: tuple[int, int, int], compiled: bool
) -> Callable[[], object]:
    """From pixels that are on the device to the last token."""
    pairs, rows, columns = grid
    config = model.config
    vision = config.vision_config
    tokens = prod(grid)
    words = torch.full((1, TEXT_TOKENS + tokens), 100, device=table.device)
    words[0, 20 : 20 + tokens] = config.video_token_id
    words[0, 19], words[0, 20 + tokens] = config.vision_start_token_id, config.vision_end_token_id
    side = vision.spatial_merge_size
    pixels = torch.randn(
        tokens * side**2,
        vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        dtype=table.dtype,
        device=table.device,
    )
    inputs: dict[str, Any] = {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[pairs, side * rows, side * columns]], device=words.device),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:  # transformers 5.3 on
        inputs["mm_token_type_ids"] = 2 * (words == config.video_token_id).int()

    def answer() -> None:
        with booked(model.model.visual, "tower"), answering() as at_each_token:
            model.generate(**inputs, logits_processor=at_each_token, **table.generate(compiled))

    return answer


@contextmanager
def booked(module: nn.Module, name: str) -> Iterator[None]:
    """Each call of a module is booked as a stage."""
    running: list[Any] = []

    def begin(*_: object) -> None:
        running.append(stage(name))
        running[-1].__enter__()

    def end(*_: object) -> None:
        running.pop().__exit__(None, None, None)

    hooks = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- The table ------------------------------------------------------------------------------------


def line(row: Result) -> str:
    """The row for people: tower, all stages between tower and prefill, prefill, further tokens."""
    title = f"{row.model:<9}{row.setting:<24}{row.minutes:>3} min{row.tokens:>8}"
    flops = f"{quantity(sum(row.flops.values()), 'FLOP'):>12}"
    if row.note is not None:
        return f"{title}{flops}  {row.note}"
    parts = defaultdict(float)
    for name, took in row.stages.items():
        known = {"tower": 0, "scout": 0, "prefill": 2, "generate": 3}
        parts[known.get(name, 1)] += took
    stages = "".join(f"{parts[i]:>9.3f}" for i in range(4))
    spread = f"{row.seconds:>9.3f} ({row.fastest:.3f} to {row.slowest:.3f})"
    return f"{title}{flops}{stages}{spread}{quantity(row.peak_bytes, 'B'):>9}"


HEADER = (
    f"{'model':<9}{'setting':<24}{'video':>7}{'tokens':>8}{'work':>12}"
    f"{'tower':>9}{'budget':>9}{'prefill':>9}{'further':>9}{'total':>9} (fastest to slowest)   peak"
)


def ratios(results: Sequence[Result]) -> Iterator[str]:
    """Each row against B-VLLM as published, in FLOPs and seconds."""
    base = {row.minutes: row for row in results if row.setting == VARIANTS[0]}
    rows: dict[tuple[str, str], dict[int, Result]] = defaultdict(dict)
    for row in results:
        rows[row.model, row.setting][row.minutes] = row
    yield f"{'times B-VLLM as published':<33}{'FLOP, 4, 8, 12 min':>24}{'seconds':>24}"
    for (model, setting), of in rows.items():
        flops = seconds = ""
        for minutes in MINUTES:
            row, one = of.get(minutes), base.get(minutes)
            if row is None or one is None:
                continue
            flops += f"{sum(row.flops.values()) / sum(one.flops.values()):>8.2f}"
            timed = row.seconds is not None and one.seconds is not None
            seconds += f"{row.seconds / one.seconds:>8.2f}" if timed else f"{'-':>8}"
        yield f"{model:<9}{setting:<24}{flops}{seconds}"
    paper = "".join(
        f"{a / b:>8.2f}" for a, b in zip(PAPER["Qwen2-VL"], PAPER["B-VLLM"], strict=True)
    )
    yield f"{'Qwen2-VL as the paper has it':<33}{'':24}{paper}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="file to which each row is written when done")
    parser.add_argument("--reduced", action="store_true", help="small models, a tenth of the video")
    parser.add_argument("--count", action="store_true", help="count the true sizes, run nothing")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is told (5)")
    parser.add_argument("--limit", type=float, help="seconds in all (540; reduced 75)")
    given = parser.parse_args(arguments)
    if given.json is not None and not given.json.parent.is_dir():
        parser.error(f"--json: got {given.json}, wanted a file in a folder that is there")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reduced = not given.count and (given.reduced or device.type == "cpu")
    limit = given.limit or (75.0 if reduced else 540.0)
    begin = time.monotonic()
    if given.count:
        device = torch.device("meta")
    if reduced:
        print("Times are of a REDUCED model and a tenth of each video; of the true ones they")
        print("say nothing.")
    print(f"{device_name(device)}, {date.today()}, torch {torch.__version__}\n{HEADER}", flush=True)

    table = Table(device, reduced, given.repeats, begin + 0.5 * limit, given.json)
    bvllm_rows(table, VARIANTS[:3])
    free(device)
    bvllm_rows(table, VARIANTS[3:], scout=True)
    free(device)
    # Compiling comes last: it may take long, and is left some time.
    compiled = device.type == "cuda"
    table.next_until(begin + (0.65 if compiled else 1.0) * limit)
    qwen2_vl_rows(table, [USUAL, *(name for name in QWEN2_VL if name != USUAL)])
    if compiled:
        free(device)
        table.next_until(begin + 0.85 * limit)
        bvllm_rows(table, VARIANTS[:1], compiled=True)
        torch.compiler.reset()
        free(device)
        table.next_until(begin + limit)
        qwen2_vl_rows(table, [USUAL], compiled=True)
    print("\n" + "\n".join(ratios(table.results)))
    return 0


if __name__ == "__main__":
    main()
