"""Train a scout for the demo model: a smaller encoder that chooses its frames, on a CPU.

    python examples/train_scout.py                      # an adapter of the demo, into ./demo_scout

Two stages:

1. scout      tells digit, colour and place in single frames, and what the demo's tower makes of
              them. It stands for a small pretrained encoder.
2. selection  a new frame selector learns, on what the scout sees, to cover the frames that are
              asked about, as in train_demo.py.

Tower, sampler, projection and language model stay as the demo has them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from needle_bank import Bank, make_clips
from needle_lessons import FrameLabels, Learner
from torch import Tensor, nn
from train_demo import WIDTH, bent, draw_frames, normalized, optimize, shrink

import bvllm_adapters as bvllm
from bvllm_adapters import BalancedTokenizer
from bvllm_adapters.config import ScoutConfig
from bvllm_qwen2 import HOST, BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor

SCOUT = ScoutConfig(
    architecture="resnet18",
    image_size=48,
    width=96,
    model_args={
        "layers": [1, 1, 1, 1],
        "channels": [16, 24, 48, 96],
        "stem_type": "deep_tiered",
        "stem_width": 4,
    },
)


@dataclass(frozen=True)
class Frames:
    """Frames that a scout learns from.

    Args:
        pixels: (F, 3, s, s) as it sees them. cls: (F, C) what the tower makes of them.
        shown: (F, 3) digit, colour and place of the needle, -1 where there is none.
    """

    pixels: Tensor
    cls: Tensor
    shown: Tensor

    @classmethod
    @torch.no_grad()
    def bent(
        cls,
        model: BvllmQwen2ForConditionalGeneration,
        processor: BvllmQwen2Processor,
        clips: Iterable[tuple[Tensor, Tensor]],
        rng: np.random.Generator,
    ) -> Frames:
        """Each bent a little, as other hands might have drawn it.

        Args:
            clips: (F, 3, S, S) uint8 pixels with what they show, as `make_clips` gives them.
        """
        scout = model.balanced_tokenizer.scout
        pixels, features, labels = [], [], []
        for frames, shown in clips:
            labels.append(shown)
            for part in frames.split(256):
                full = bent(normalized(part, processor), rng)
                pixels.append(scout.smaller(full).half())
                features.append(model.look(full)[0])
        return cls(torch.cat(pixels), torch.cat(features), torch.cat(labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo_scout"))
    parser.add_argument("--scale", type=float, default=1.0, help="of all steps and frames")
    options = parser.parse_args()

    def scaled(count: int) -> int:
        return max(2, round(count * options.scale))

    rng = np.random.default_rng([options.seed, 3])
    model, processor = HOST.demo()
    put_scout_in(model, options.seed)
    # Fewer clips would not show each digit in each colour at each place.
    clips = make_clips(max(100, scaled(500)), split="train", seed=options.seed, shrink=shrink)
    drawn = draw_frames(rng, scaled(48_000))
    frames = Frames.bent(model, processor, [clips, clips, drawn], rng)
    train_scout(model.balanced_tokenizer.scout, frames, rng, steps=scaled(12_000))
    train_selector(model, processor, clips, options.seed, steps=scaled(800))
    bvllm.save_adapter(model.half(), options.out)


def put_scout_in(model: BvllmQwen2ForConditionalGeneration, seed: int) -> None:
    """An untrained scout, and a selector for its features; the rest of the tokenizer stays."""
    torch.manual_seed(seed)
    demo = model.balanced_tokenizer
    model.balanced_tokenizer = BalancedTokenizer(
        replace(demo.config, scout=SCOUT),
        spatial_sampler=demo.spatial_sampler,
        projection=demo.projection,
    )


def train_scout(
    scout: Any, frames: Frames, rng: np.random.Generator, *, steps: int, batch: int = 64
) -> None:
    """The weights that stay are an exponential moving average."""
    encoder = scout.encoder.requires_grad_(True).train()
    average = torch.optim.swa_utils.AveragedModel(
        encoder, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    labels, to_cls = FrameLabels(SCOUT.width), nn.Linear(SCOUT.width, WIDTH)
    cls = (frames.cls - frames.cls.mean(dim=0)) / frames.cls.std(dim=0)

    def loss(done: float) -> Tensor:
        picked = torch.from_numpy(rng.integers(len(cls), size=batch))
        feature = encoder(frames.pixels[picked].float())
        apart = F.mse_loss(to_cls(feature), cls[picked])
        return labels.loss(feature, frames.shown[picked]) + 10 * apart

    optimize(
        "scout",
        loss,
        [*encoder.parameters(), *labels.parameters(), *to_cls.parameters()],
        steps=steps,
        lr=3e-3,
        weight_decay=0.05,
        after=lambda: average.update_parameters(encoder),
    )
    encoder.load_state_dict(average.module.state_dict())
    scout.requires_grad_(False).train(False)


def train_selector(
    model: BvllmQwen2ForConditionalGeneration,
    processor: BvllmQwen2Processor,
    clips: tuple[Tensor, Tensor],
    seed: int,
    *,
    steps: int,
) -> None:
    """By which frames are asked about, on the scout's features of them."""
    scout: Any = model.balanced_tokenizer.scout
    no_patches = torch.zeros(256, 1, 1)
    bank = Bank.fill(
        *clips, lambda pixels: (scout(normalized(pixels, processor)), no_patches[: len(pixels)])
    )
    learner = Learner(model, processor, bank, seed)
    selector = model.balanced_tokenizer.frame_selector
    optimize("selection", learner.cover(), [*selector.parameters()], steps=steps, lr=2e-3)


if __name__ == "__main__":
    main()
