"""Train the model that ships as `bvllm demo` from scratch, on a CPU, and what it is compared with.

    python examples/train_demo.py                       # the demo model, into ./demo
    python examples/train_demo.py --method uniform      # a baseline, into ./demo/baselines

Four stages, each of which is kept in --work and not run again if it is there:

1. tower      classify digit, colour and place in single frames; frozen from then on. It stands
              for a pretrained vision encoder.
2. reading    sampler, projection and language model answer questions about a few frames, all of
              which are kept. It stands for a pretrained sampler and language model.
3. selection  the frame selector alone learns to cover the frames that are asked about (the paper's
              first stage; its loss is the language model's, ours knows which frames those are).
4. joint      all but the tower learn from the answers alone, frames chosen with Gumbel noise
              (the paper's second stage), under budgets drawn at random.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from needle_bank import COLOR_NAMES, Bank, make_clips
from needle_lessons import LENGTHS, FrameLabels, Learner
from PIL import Image
from safetensors.torch import load_file, save_file
from small_model import WIDTH, small_model
from torch import Tensor, nn

from bvllm_adapters.evaluation.methods import METHODS, build_method
from bvllm_adapters.evaluation.needle import COLORS, PLACES, Haystack, draw_needle, draw_scenes
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_qwen2 import (
    BvllmQwen2ForConditionalGeneration,
    BvllmQwen2Processor,
    TimmVisionConfig,
)

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|endoftext|>", "<|im_end|>", "user", "assistant"),
    *("what", "which", "where", "how", "many", "is", "are", "the", "digit", "digits", "color"),
    *("came", "first", "or", "?", ",", "top", "bottom", "left", "right"),
    *map(str, range(10)),
    *COLORS,
]
IMAGE_SIZE = 64


@dataclass(frozen=True)
class Steps:
    """How long each stage takes."""

    clips: int = 500  # of 96 frames, for tower and bank
    tower: int = 3000
    reading: int = 2000
    selection: int = 400
    joint: int = 600

    def scaled(self, factor: float) -> Steps:
        scaled = Steps(*(max(2, round(steps * factor)) for steps in vars(self).values()))
        # Fewer would not show each digit in each colour at each place.
        return replace(scaled, clips=max(100, scaled.clips))


def build(method: str, seed: int) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
    """An untrained model of the demo's size, which spends its budget by this method."""
    torch.manual_seed(seed)
    vision = TimmVisionConfig(
        "xcit_nano_12_p16_224",
        image_size=IMAGE_SIZE,
        hidden_size=WIDTH,
        model_args={
            "img_size": IMAGE_SIZE,
            "embed_dim": WIDTH,
            "depth": 3,
            "cls_attn_layers": 2,
            "num_heads": 4,
        },
    )
    model, processor = small_model(vision, WORDS)
    if method != "bvllm":
        model.balanced_tokenizer = build_method(method, model.config.balanced_tokenizer_config)
    return model, processor


# 1. The tower


def shrink(frames: np.ndarray) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, S, S) uint8, as the processor resizes them."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    small = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames]
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in small])).permute(0, 3, 1, 2)


def normalized(pixels: Tensor, processor: BvllmQwen2Processor) -> Tensor:
    """uint8 pixels -> what the tower takes."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    return (pixels.float() / 255 - mean) / std


def train_tower(
    model: BvllmQwen2ForConditionalGeneration,
    processor: BvllmQwen2Processor,
    clips: tuple[Tensor, Tensor],
    steps: int,
    seed: int,
    *,
    batch: int = 128,
) -> None:
    """Half of each batch are frames of the clips, half are drawn anew; all are bent a little.

    The weights that stay are an exponential moving average.
    """
    encoder = model.vision_tower.encoder
    pixels, shown = clips
    rng = np.random.default_rng([seed, 1])
    of_cls, of_patches = FrameLabels(WIDTH), FrameLabels(WIDTH)
    encoder.requires_grad_(True).train()
    average = torch.optim.swa_utils.AveragedModel(
        encoder, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    parameters = [*encoder.parameters(), *of_cls.parameters(), *of_patches.parameters()]

    def loss() -> Tensor:
        picked = torch.from_numpy(rng.integers(len(pixels), size=batch // 2))
        drawn, drawn_shown = draw_frames(rng, batch - len(picked))
        frames = bent(normalized(torch.cat([pixels[picked], drawn]), processor), rng)
        labels = torch.cat([shown[picked], drawn_shown])
        tokens = encoder.forward_features(frames)
        return of_cls.loss(tokens[:, 0], labels) + 0.5 * of_patches.loss(
            tokens[:, 1:].mean(dim=1), labels
        )

    optimize(
        "tower", loss, parameters, steps=steps, lr=3e-3, weight_decay=0.05,
        after=lambda: average.update_parameters(encoder),
    )  # fmt: skip
    encoder.load_state_dict(average.module.state_dict())
    model.vision_tower.freeze()


def draw_frames(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """(count, 3, S, S) uint8 frames, three of four with a needle, and what they show."""
    frames, shown = [], []
    for _ in range(count):
        needles = ()
        about = [-1, -1, -1]
        if rng.random() < 0.75:
            digit, color = int(rng.integers(10)), int(rng.integers(len(COLOR_NAMES)))
            needles = (
                draw_needle(
                    rng, digit=digit, color=COLOR_NAMES[color], start=0, length=1, split="train"
                ),
            )
            about = [digit, color, PLACES.index(needles[0].place)]
        still = Haystack(1, draw_scenes(rng, 1, "train"), needles, ())
        frames += still.render([0.0], IMAGE_SIZE)
        shown.append(about)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), torch.tensor(shown)


def bent(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Each frame turned, sheared, scaled and moved a little: other hands, as it were."""
    turn, shear, wide, high, x, y = torch.from_numpy(
        rng.uniform(-1, 1, (6, len(frames))).astype(np.float32)
    )
    turn = 0.25 * turn
    affine = torch.stack(
        [
            turn.cos() * (1 + 0.15 * wide), 0.2 * shear - turn.sin(), 0.03 * x,
            turn.sin(), turn.cos() * (1 + 0.15 * high), 0.03 * y,
        ],
        dim=1,
    ).view(-1, 2, 3)  # fmt: skip
    grid = F.affine_grid(affine, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="reflection", align_corners=False)


# 2. to 4. What reads, chooses, and both: the lessons


def optimize(
    name: str,
    loss: Callable[..., Tensor],
    parameters: Sequence[nn.Parameter] | list[dict[str, Any]],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.01,
    after: Callable[[], object] = lambda: None,
) -> None:
    """AdamW, cosine from `lr` to 3 % of it after a warm-up, gradients clipped at 1."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / min(100, 1 + steps // 10))
            * (0.03 + 0.97 * (1 + math.cos(math.pi * min(1, step / steps))) / 2)
        ),
    )
    all_parameters = [p for group in optimizer.param_groups for p in group["params"]]
    began, recent = time.monotonic(), []
    for step in range(steps):
        value = loss() if name == "tower" else loss(step / steps)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(all_parameters, 1.0)
        optimizer.step()
        schedule.step()
        after()
        recent = [*recent[-49:], value.item()]
        if (step + 1) % 100 == 0 or step in (0, steps - 1):
            mean, seconds = sum(recent) / len(recent), time.monotonic() - began
            told = f"{name:<9} {step + 1:>5} of {steps}  loss {mean:.4f}  {seconds:.0f} s"
            print(told, flush=True)


def train(
    method: str, *, seed: int, work: Path, steps: Steps
) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
    """All stages that are not in `work` yet."""
    model, processor = build(method, seed)
    bank = see_all(model, processor, work, steps)
    # Methods that sample frames alike have learnt to read alike.
    reader = {"no_question": "bvllm", "random": "uniform"}.get(method, method)
    learn(model, processor, bank, name=method, reader=reader, seed=seed, work=work, steps=steps)
    return model, processor


def learn(
    model: BvllmQwen2ForConditionalGeneration,
    processor: BvllmQwen2Processor,
    bank: Bank,
    *,
    name: str,
    reader: str,
    seed: int,
    work: Path,
    steps: Steps,
    covering: bool = True,
) -> None:
    """Stages 2 to 4 of the model called `name`; its reading stage is that of `reader`.

    Args:
        covering: False: the selector learns from the answers alone.
    """
    learner = Learner(model, processor, bank, seed)
    readers = readers_of(model)
    choosers = [
        m for m in (model.balanced_tokenizer.frame_selector,) if isinstance(m, FrameSelector)
    ]
    model.train()

    def reading() -> None:
        learn_to_read(learner, FrameLabels(WIDTH), steps.reading)

    def selection() -> None:
        parameters = parameters_of(*choosers)
        if covering:
            optimize("selection", learner.cover(), parameters, steps=steps.selection, lr=2e-3)
        else:
            optimize("selection", learner.answer_softly(), parameters, steps=steps.joint, lr=2e-3)

    def joint() -> None:
        learn_jointly(learner, steps.joint)

    once(work / f"reading_{reader}_{seed}.safetensors", readers, reading)
    if choosers:
        once(work / f"selection_{name}_{seed}.safetensors", choosers[0], selection)
    both = nn.ModuleList([*readers, *choosers])
    once(work / f"joint_{name}_{seed}.safetensors", both, joint)
    model.eval()


def learn_to_read(learner: Learner, labels: FrameLabels, steps: int) -> None:
    """Stage 2. Args: labels: of the bank's frames, which the sampler learns beside the answers."""
    match = nn.Linear(WIDTH, 1)
    parameters = parameters_of(readers_of(learner.model), labels, match)
    optimize("reading", learner.read(labels, match), parameters, steps=steps, lr=2e-3)


def learn_jointly(learner: Learner, steps: int, lengths: Sequence[int] = LENGTHS) -> None:
    """Stage 4. Args: lengths: of the videos, in frames."""
    selector = learner.tokenizer.frame_selector
    groups = [{"params": parameters_of(readers_of(learner.model))}]
    if isinstance(selector, FrameSelector):
        # Else the noise of the choice undoes what the selector knows.
        groups.append({"params": parameters_of(selector), "lr": 5e-5})
    optimize("joint", learner.answer(lengths), groups, steps=steps, lr=5e-4)


def readers_of(model: BvllmQwen2ForConditionalGeneration) -> nn.ModuleList:
    """What reads chosen frames, and answers."""
    tokenizer = model.balanced_tokenizer
    return nn.ModuleList([tokenizer.spatial_sampler, tokenizer.projection, model.language_model])


def see_all(
    model: BvllmQwen2ForConditionalGeneration,
    processor: BvllmQwen2Processor,
    work: Path,
    steps: Steps,
    seed: int = 0,
) -> Bank:
    """A trained tower, the same whatever the seed of the rest, and what it sees."""
    work.mkdir(parents=True, exist_ok=True)

    def tower() -> None:
        train_tower(model, processor, clips(), steps.tower, seed)

    clips = cache(lambda: make_clips(steps.clips, split="train", seed=seed, shrink=shrink))
    once(work / "tower.safetensors", model.vision_tower, tower)
    if not (work / "bank.safetensors").exists():
        see(model, processor, clips()).save(work / "bank.safetensors")
    return Bank.load(work / "bank.safetensors")


def see(
    model: BvllmQwen2ForConditionalGeneration,
    processor: BvllmQwen2Processor,
    clips: tuple[Tensor, Tensor],
) -> Bank:
    model.vision_tower.chunk_size = 256
    return Bank.fill(*clips, lambda pixels: model.vision_tower(normalized(pixels, processor)))


def once(file: Path, module: nn.Module, run: Callable[[], None]) -> None:
    """Run a stage and keep the module that it trained, or take it from the file."""
    if file.exists():
        module.load_state_dict(load_file(file))
        return
    run()
    state = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(state, file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)


def parameters_of(*modules: nn.Module) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, default="bvllm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--work", type=Path, default=Path("demo-work"), help="finished stages")
    parser.add_argument("--scale", type=float, default=1.0, help="of all stages' steps")
    options = parser.parse_args()
    model, processor = train(
        options.method, seed=options.seed, work=options.work, steps=Steps().scaled(options.scale)
    )
    model.half()
    if options.method == "bvllm":
        model.save_pretrained(options.out)
        processor.save_pretrained(options.out)
    else:
        folder = options.out / "baselines"
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: tensor.contiguous()
            for name, tensor in model.state_dict().items()
            if not name.startswith("vision_tower.") and name != "language_model.lm_head.weight"
        }
        save_file(state, folder / f"{options.method}.safetensors")


if __name__ == "__main__":
    main()
