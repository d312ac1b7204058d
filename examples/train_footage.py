"""Train a model for the needles in footage, on a CPU: an ImageNet tower that stays as it is, and
all else from scratch.

    python examples/train_footage.py media --out footage-model

It takes eleven minutes of CPU time. Its stages are those of train_demo.py but for the first, as
the tower has seen natural pictures before: reading, selection, joint; each is kept in --work and
not run again if it is there. It answers in words and is not told the options: the likeliest of
them is its answer (`bvllm evaluate FILE --by likelihood`), which their order cannot sway.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from footage_methods import LEARNED, tokenizer_of_method
from natural_media import CATEGORIES, Media
from needle_bank import CLIP_FRAMES, COLOR_NAMES, NEEDLE_EVERY, Bank, Example
from needle_lessons import FrameLabels, Learner
from needles_in_footage import SIZE, STYLES, FootageHaystack, draw_card, draw_footage, make_haystack
from small_model import WIDTH, small_model
from torch import Tensor, nn
from train_demo import (
    learn_jointly,
    learn_to_read,
    normalized,
    once,
    optimize,
    parameters_of,
    readers_of,
)

from bvllm_adapters import read_video
from bvllm_adapters.evaluation.needle import COLORS, Question
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_qwen2 import (
    BvllmQwen2ForConditionalGeneration,
    BvllmQwen2Processor,
    TimmVisionConfig,
)

TOWER, TOWER_WIDTH = "tf_efficientnet_lite0", 1280 + 24 + 40
LENGTHS = (16, 32, 64)  # frames of a video that is trained on
WORDS = list(
    dict.fromkeys(
        [
            *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|endoftext|>", "<|im_end|>"),
            *("user", "assistant", "what", "is", "on", "the", "card", "cards", "in", "which"),
            *("order", "are", "a", "an", "and", "shown", "how", "many", "show", "?", ","),
            *("1", "2", "3", "4"),
            *COLORS,
            *CATEGORIES,
        ]
    )
)


def build(
    media: Media,
    seed: int,
    *,
    size: int = SIZE,
    words: list[str] = WORDS,
    num_frames: int = 4,
    tokens_per_frame: int = 4,
) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
    """A model with the ImageNet tower in it, which has read nothing yet.

    Args:
        size: of frames, in pixels. words: that it knows. num_frames: K. tokens_per_frame: R.
    """
    torch.manual_seed(seed)
    # Its last layer knows things, but hardly colours, which cards have; two early ones know these.
    vision = TimmVisionConfig(
        TOWER, image_size=size, hidden_size=TOWER_WIDTH, has_cls=False, earlier=[1, 2]
    )
    model, processor = small_model(
        vision,
        words,
        num_frames=num_frames,
        tokens_per_frame=tokens_per_frame,
        max_question_tokens=32,
        vision_chunk_size=4,  # more are slower on a CPU
    )
    pixels = processor.image_processor
    pixels.image_mean = pixels.image_std = [0.5, 0.5, 0.5]  # as it was trained
    load_tower(model.vision_tower.encoder.model, media.tower)
    return model, processor


def load_tower(encoder: nn.Module, file: Path) -> None:
    """Published weights, which lie in timm's order under other names; the classifier is left out.

    Raises:
        RuntimeError: they are of another model.
    """
    own = encoder.state_dict()
    published = list(torch.load(file, map_location="cpu", weights_only=True).values())
    encoder.load_state_dict(dict(zip(own, published[: len(own)], strict=True)))


class FootageBank(Bank):
    """What the tower saw of clips full of cards; see `needle_bank.Bank`.

    Args:
        shown: (F, 3) category, colour and style of the card that shows; -1: none.
    """

    @staticmethod
    def labels_of(needle: Any) -> tuple[int, ...]:
        return (
            list(CATEGORIES).index(needle.category),
            COLOR_NAMES.index(needle.color),
            STYLES.index(needle.style),
        )

    def scenes_of(self, haystack: Any, rng: np.random.Generator) -> np.ndarray:
        frames = np.empty(haystack.num_frames, np.int64)
        for scene in haystack.scenes:
            start, end = int(scene.start), int(scene.end)
            frames[start:end] = rng.choice(self.empty[rng.integers(len(self.empty))], end - start)
        return frames


class FootageLearner(Learner):
    """Questions about cards in footage."""

    def __init__(self, model: Any, processor: Any, bank: Bank, seed: int, media: Media) -> None:
        super().__init__(model, processor, bank, seed)
        self.prompt = self._prompt  # hardly any comes twice
        self.media = media

    def examples(self, count: int, num_frames: int | None = None) -> list[Example]:
        found: list[Example] = []
        while len(found) < count:
            haystack = make_haystack(
                int(self.rng.integers(2**62)),
                self.media,
                num_frames=num_frames or 20,
                style=STYLES[self.rng.integers(len(STYLES))],
                split="train",
            )
            frames = self.bank.frames_of(haystack, self.rng)
            for asked in haystack.questions:
                shows = [list(haystack.needles[i].seconds) for i in asked.needles]
                question = Question(asked.kind, asked.text, asked.answer, asked.needles)
                found.append(Example(frames, question, shows))
        picked = self.rng.permutation(len(found))[:count]
        return [found[i] for i in picked]


@torch.no_grad()
def seen_of(
    model: Any, processor: Any, clips: Sequence[tuple[FootageHaystack, Tensor]], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What a bank is made of: clips as the tower sees them, through mp4 files and the decoder.

    Args:
        clips: each with what its frames show. size: of frames, in pixels.
    """
    cls, patches = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, (haystack, _) in enumerate(clips, start=1):
            haystack.write(Path(folder) / "clip.mp4", size=size)
            frames = torch.from_numpy(read_video(Path(folder) / "clip.mp4").frames)
            seen = model.vision_tower(normalized(frames.permute(0, 3, 1, 2), processor), "mean")
            cls.append(seen[0].half())
            patches.append(seen[1].half())
            if number % 20 == 0:
                print(f"bank      {number:>5} of {len(clips)} clips", flush=True)
    return torch.cat(cls), torch.cat(patches), torch.cat([about for _, about in clips])


def clips_of(media: Media, count: int, seed: int) -> list[tuple[FootageHaystack, Tensor]]:
    """Clips that show a card in two frames of three."""
    kinds = cycle(product(media.categories, COLOR_NAMES, STYLES))  # as many of each
    clips = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        starts = range(0, CLIP_FRAMES, NEEDLE_EVERY)
        cards = tuple(
            draw_card(
                rng, media, category=category, color=color, style=style, start=start, length=2,
                split="train",
            )
            for start, (category, color, style) in zip(starts, kinds, strict=False)
        )  # fmt: skip
        about = torch.full((CLIP_FRAMES, 3), -1)
        for card in cards:
            labels = torch.tensor(FootageBank.labels_of(card))
            about[card.start : card.start + card.length] = labels
        scenes = draw_footage(rng, media, CLIP_FRAMES, "train")
        clips.append((FootageHaystack(CLIP_FRAMES, scenes, cards, ()), about))
    return clips


def train(
    media: Media, *, seed: int, work: Path, method: str = LEARNED, scale: float = 1.0
) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
    """All stages that are not in `work` yet; what a method reads by is trained as ours is."""
    work.mkdir(parents=True, exist_ok=True)
    model, processor = build(media, seed)
    model.balanced_tokenizer = tokenizer_of_method(method, model.config.balanced_tokenizer_config)
    tokenizer = model.balanced_tokenizer
    readers = readers_of(model)
    choosers = [m for m in (tokenizer.frame_selector,) if isinstance(m, FrameSelector)]
    name = method.replace(" ", "_")
    reader = name if method == "two tokens" else LEARNED  # others read the same tokens

    def steps(count: int) -> int:
        return max(2, round(count * scale))

    # Tokens of all frames are many times the work.
    all_frames = tokenizer.frame_selector is None
    lengths, joint_steps = (LENGTHS[:2], 200) if all_frames else (LENGTHS, 400)

    @cache
    def learner() -> FootageLearner:
        bank = work / "bank.safetensors"
        if not bank.exists():
            clips = clips_of(media, max(5, round(160 * scale)), seed=0)
            FootageBank(*seen_of(model, processor, clips, SIZE)).save(bank)
        return FootageLearner(model, processor, FootageBank.load(bank), seed, media)

    def reading() -> None:
        kinds = len(CATEGORIES), len(COLORS)
        learn_to_read(learner(), FrameLabels(WIDTH, kinds), steps(700))

    def selection() -> None:
        parameters = parameters_of(*choosers)
        optimize("selection", learner().cover(), parameters, steps=steps(400), lr=2e-3)

    def joint() -> None:
        learn_jointly(learner(), steps(joint_steps), lengths)

    model.train()
    once(work / f"reading_{reader}_{seed}.safetensors", readers, reading)
    if choosers:
        once(work / f"selection_{name}_{seed}.safetensors", choosers[0], selection)
    once(work / f"joint_{name}_{seed}.safetensors", nn.ModuleList([*readers, *choosers]), joint)
    return model.eval(), processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("media", help="folder that natural_media.py filled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("footage-model"))
    parser.add_argument("--work", type=Path, default=Path("footage-work"), help="finished stages")
    parser.add_argument("--scale", type=float, default=1.0, help="of all stages' steps")
    options = parser.parse_args()
    model, processor = train(
        Media(options.media), seed=options.seed, work=options.work, scale=options.scale
    )
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)


if __name__ == "__main__":
    main()
