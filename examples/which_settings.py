"""Which budget fits which GPU: what video LLMs of published sizes take, counted without weights.

    python examples/which_settings.py            # the tables of docs/settings.md, in some minutes
    python examples/which_settings.py --check    # whether they are still those

Nothing is downloaded and nothing was measured on a GPU. Models are made on the meta device in
bfloat16; weights, keys and values are their bytes. What is alive at once while tower and language
model run is followed tensor by tensor through their own code, with attention that keeps no scores,
as GPUs' kernels do. CUDA's own memory and fragmentation are not counted: 10 % of a GPU is left free
for them, as `bvllm bench` does.

Axes: T frames or groups of frames that a video has, K chosen ones, P tokens of each, L of a prompt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import published_sizes
import torch
from alive_at_once import most_alive
from torch import Tensor

from bvllm_adapters.bench.counted import Counter, Setting
from bvllm_adapters.bench.published import build, weights_bytes
from bvllm_adapters.bench.reading import Reading
from bvllm_adapters.bench.shapes import SHAPES, empty, flops_of, in_shape
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.seeing.encoding import KEEP_FRAMES, Encoding
from bvllm_adapters.selectors.split import frames_and_tokens, least_tokens
from bvllm_transformers.families import FAMILIES
from bvllm_transformers.layout import frames_per_look, ghosts, lay_out, processed
from bvllm_transformers.splits import Grid

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- counted -->\n", "<!-- end of counted -->"

HEIGHT, WIDTH = 360, 640  # of the videos, one frame a second
MINUTES = {1: "1 minute", 10: "10 minutes", 60: "1 hour"}
BUDGETS = (512, 1024, 2048, 4096, 8192)
USUAL = 1024  # what is set beside no budget
GPUS = (8, 12, 16, 24, 48, 80)  # GB
USED = 0.9  # of a GPU's memory
TEXT, NEW = 64, 128  # tokens of the question's prompt, and of the answer
QUESTION = "What is the man with the yellow helmet doing after he has left the house?"
BF16 = torch.bfloat16
LEARNED = {
    "VideoLLaMA2-7B": "Videollama2MistralForCausalLM",
    "LLaMA-VID-7B": "LlavaLlamaAttForCausalLM",
}


@dataclass(frozen=True)
class Asked:
    """What one question about one video takes.

    Args:
        frames: that the language model reads of, each with `each` tokens. tokens: N in all.
        bytes: at once, the weights among them. flops: of tower and prefill.
    """

    frames: int
    each: int
    tokens: int
    bytes: int
    flops: int


class Counted:
    """A model in its published size.

    Args:
        name: for people. model: on the meta device.
    """

    untrained = True  # frames are chosen without training

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.weights = weights_bytes(model)
        self.context: int = model.config.get_text_config().max_position_embeddings
        self.ghost = in_shape(model)
        self.reading = Reading.of(self.ghost)

    @cached_property
    def token_bytes(self) -> float:
        """Of each token of a prompt, while it is read: keys and values of all layers, and what the
        widest layer makes. It is the same for every length."""
        embeds = empty(1, 256, self.ghost.get_input_embeddings().weight.shape[1], dtype=BF16)
        model = getattr(self.ghost, "language_model", self.ghost)
        last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        with SHAPES:
            positions = torch.zeros(1, embeds.shape[1], dtype=torch.int64)
            read = most_alive(
                lambda: model(inputs_embeds=embeds, position_ids=positions, use_cache=True, **last)
            )
        return (read + embeds.nbytes) / embeds.shape[1]

    def asked(self, frames: int, each: int, tokens: int, seeing: int, tower: int) -> Asked:
        """With so many visual tokens, `seeing` bytes and `tower` FLOPs."""
        reading = int((TEXT + tokens) * self.token_bytes) + NEW * self.reading.cache_bytes
        return Asked(
            frames, each, tokens, self.weights + max(seeing, reading),
            tower + self.reading.flops(1, TEXT + tokens),
        )  # fmt: skip


class Untrained(Counted):
    """One of transformers' own: chosen frames alone are seen by the tower, by its own tokens."""

    def __init__(self, name: str) -> None:
        super().__init__(name, published_sizes.build(name))
        self.family = FAMILIES[published_sizes.CLASSES[name]]
        self.processor = SimpleNamespace(video_processor=published_sizes.video_processor(name))
        # P, bytes and FLOPs of one group: the tower is linear in them.
        self.clip = cache(self._clip)
        self.grid = cache(self._grid)

    def budgeted(self, frames: int, budget: int) -> Asked:
        """`bvllm.ask` of a model that was wrapped with `max_tokens=budget` alone."""
        groups = -(-frames // self._per_look())
        config = BalancedTokenizerConfig(
            max_tokens=budget, num_frames=None, tokens_per_frame=None,
            selector="coverage", sampler="none", projection="none",
        )  # fmt: skip
        layout = lay_out(
            self.family, config, self.processor, HEIGHT, WIDTH, groups, lambda: self.clip()[0]
        )
        native = layout.patches_per_frame
        chosen, each = frames_and_tokens(budget, groups, native, least=least_tokens(native))
        # A pair is chosen, and seen, as one.
        _, seeing, tower = self.see(layout.height, layout.width)
        tokens = min(budget, chosen * native)
        return self.asked(chosen, each, tokens, chosen * seeing, chosen * tower)

    def unbudgeted(self, frames: int) -> Asked:
        """Each frame shown as the processor makes it."""
        if not isinstance(self.family.split, Grid):
            groups, height, width = frames, HEIGHT, WIDTH
        else:
            made = processed(self.processor.video_processor, ghosts(frames, HEIGHT, WIDTH))
            groups, height, width = made["video_grid_thw"][0].tolist()
            height, width = (self._patch() * side for side in (height, width))
        native, seeing, tower = self.see(height, width)
        return self.asked(groups, native, groups * native, groups * seeing, groups * tower)

    def _per_look(self) -> int:
        return frames_per_look(self.family, self.processor)

    def _patch(self) -> int:
        return int(self.processor.video_processor.patch_size)

    def see(self, height: int, width: int) -> tuple[int, int, int]:
        return self.grid(height, width) if isinstance(self.family.split, Grid) else self.clip()

    def _grid(self, height: int, width: int) -> tuple[int, int, int]:
        rows, columns = height // self._patch(), width // self._patch()
        video = self.processor.video_processor
        # Its values decide how long tensors are, so that it has some.
        grid = torch.tensor([[1, rows, columns]])
        width = 3 * video.temporal_patch_size * self._patch() ** 2
        pixels = empty(rows * columns, width, dtype=BF16)
        return self._count({"pixel_values_videos": pixels, "video_grid_thw": grid}, pixels)

    def _clip(self) -> tuple[int, int, int]:
        size = self.processor.video_processor.size
        pixels = empty(1, 1, 3, size["height"], size["width"], dtype=BF16)
        return self._count({"pixel_values_videos": pixels}, pixels)

    def _count(self, inputs: dict[str, Tensor], pixels: Tensor) -> tuple[int, int, int]:
        def run() -> Any:
            return getattr(self.ghost.model, self.family.call)(**inputs, return_dict=True)

        out, flops = flops_of(run)
        tokens = sum(len(part) for part in out.pooler_output) - self.family.tail
        return tokens, most_alive(run) + pixels.nbytes, flops


class Learned(Counted):
    """The paper's tokenizer, each question choosing L* frames of R = 32 tokens each."""

    untrained = False

    def __init__(self, name: str) -> None:
        model, processor = build(LEARNED[name], dtype=BF16)
        super().__init__(name, model)
        frame = torch.empty(HEIGHT, WIDTH, 3, dtype=torch.uint8)
        pixels = host_of(model).pixels(processor, frame.zero_().numpy()[None])
        self.counter = Counter(model, Setting(QUESTION, TEXT, NEW, frame, pixels))

    @cached_property
    def chunk_bytes(self) -> int:
        """While the tower looks at a chunk of frames."""
        pixels = empty(Encoding().chunk_size, *self.counter.setting.pixels.shape[1:], dtype=BF16)
        look = host_of(self.ghost).look
        with SHAPES:
            return most_alive(lambda: look(self.ghost, pixels)) + pixels.nbytes

    def budgeted(self, frames: int, budget: int) -> Asked:
        trace = self.counter.expected(frames, budget)
        work = self.counter.wrapped(trace)
        flops = sum(done.flops or 0 for name, done in work.items() if name != "generate")
        patches = self.counter.look(1)[0][1].nbytes
        kept = min(frames * patches, Encoding().device_bytes) if frames <= KEEP_FRAMES else 0
        tokens, chosen = trace.num_tokens, len(trace.frames)
        asked = self.asked(chosen, tokens // chosen, tokens, self.chunk_bytes, 0)
        return Asked(chosen, tokens // chosen, tokens, asked.bytes + kept, flops)

    def unbudgeted(self, frames: int) -> Asked:
        work, tokens = self.counter.unwrapped(frames)
        flops = sum(done.flops or 0 for name, done in work.items() if name != "generate")
        asked = self.asked(frames, tokens // frames, tokens, self.chunk_bytes, 0)
        kept = frames * self.counter.see(1)[0].nbytes  # as it is done without us
        return Asked(frames, tokens // frames, tokens, asked.bytes + kept, flops)


# --- The tables -----------------------------------------------------------------------------------


def gigabytes(of: float) -> str:
    return f"{of / 1e9:.1f}" if of < 99.95e9 else f"{of / 1e9:,.0f}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells: object) -> list[str]:
    return [row(*cells), row(*["---"] * len(cells))]


def sizes(models: list[Counted]) -> Iterator[str]:
    yield from head(
        "model", "weights, GB", "each 1,000 tokens of a prompt, GB: kept / while they are read",
        "its context, tokens",
    )  # fmt: skip
    for model in models:
        kept, read = (1000 * each for each in (model.reading.cache_bytes, model.token_bytes))
        memory = f"{kept / 1e9:.2f} / {read / 1e9:.2f}"
        yield row(model.name, gigabytes(model.weights), memory, f"{model.context:,}")


@cache
def budgeted(model: Counted, minutes: int, budget: int) -> Asked:
    return model.budgeted(60 * minutes, budget)


def needs(model: Counted, budget: int) -> int | None:
    """Bytes, for a video of any of these lengths; None: it makes no use of such a budget."""
    asked = [budgeted(model, minutes, budget) for minutes in MINUTES]
    if max(one.tokens for one in asked) < budget:
        return None
    return max(one.bytes for one in asked)


def memory_needed(models: list[Counted]) -> Iterator[str]:
    yield from head("GB with a budget of", *(f"{budget:,}" for budget in BUDGETS))
    for model in models:
        each = (needs(model, budget) for budget in BUDGETS)
        yield row(model.name, *("-" if one is None else gigabytes(one) for one in each))


def fitting(models: list[Counted]) -> Iterator[str]:
    yield from head("largest budget on", *(f"{gpu} GB" for gpu in GPUS))
    for model in models:
        known = {budget: needs(model, budget) for budget in BUDGETS}
        cells = []
        for gpu in GPUS:
            room = USED * gpu * 1e9
            fits = [budget for budget, bytes in known.items() if bytes and bytes <= room]
            cells.append(f"{max(fits):,}" if fits else "-")
        yield row(model.name, *cells)


def spent(models: list[Counted]) -> Iterator[str]:
    yield from head(f"with {USUAL:,}: frames x tokens of each, FLOPs", *MINUTES.values())
    for model in models:
        asked = [budgeted(model, minutes, USUAL) for minutes in MINUTES]
        cells = (f"{one.frames} x {one.each}, {one.flops / 1e12:,.0f} TFLOP" for one in asked)
        yield row(model.name, *cells)


def without(models: list[Counted]) -> Iterator[str]:
    yield from head(
        f"without: frames x tokens of each, GB, FLOPs in those with {USUAL:,}", *MINUTES.values()
    )
    for model in models:
        cells = []
        for minutes in MINUTES:
            free, bound = model.unbudgeted(60 * minutes), budgeted(model, minutes, USUAL)
            times = free.flops / bound.flops
            more = f"{times:.1f}" if times < 10 else f"{times:,.0f}"
            told = f"{free.frames:,} x {free.each:,}, {gigabytes(free.bytes)} GB, {more}"
            longer = free.tokens + TEXT + NEW > model.context
            cells.append(f"{told}; more than its context" if longer else told)
        yield row(model.name, *cells)


TABLES: tuple[Callable[[list[Counted]], Iterator[str]], ...] = (
    fitting, memory_needed, spent, without, sizes
)  # fmt: skip


def counted_models(names: list[str]) -> list[Counted]:
    own = [Untrained(name) for name in published_sizes.CONFIGS if name in names]
    return own + [Learned(name) for name in LEARNED if name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = [*published_sizes.CONFIGS, *LEARNED]
    parser.add_argument("--models", nargs="+", choices=known, default=known)
    parser.add_argument("--check", action="store_true", help=f"against {PAGE.name}; 1: it differs")
    options = parser.parse_args()
    models = counted_models(options.models)
    text = "\n\n".join("\n".join(table(models)) for table in TABLES) + "\n"
    if not options.check:
        print(text, end="")
        return 0
    told = PAGE.read_text(encoding="utf-8")
    lines = set(told[told.index(BEGIN) : told.index(END)].splitlines())
    changed = [line for line in text.splitlines() if line not in lines]
    print("\n".join(changed) or "as it stands on the page")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
