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
from collections import defaultdict
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from footage_methods import LEARNED, tokenizer_of_method
from natural_media import CATEGORIES, Media
from needle_bank import CLIP_FRAMES, COLOR_NAMES, NEEDLE_EVERY, Bank, Example
from needle_lessons import Learner
from needles_in_footage import SIZE, STYLES, FootageHaystack, draw_card, draw_footage, make_haystack
from torch import Tensor, nn
from train_demo import CHAT_TEMPLATE, _once, _parameters, normalized, optimize
from transformers import Qwen2Config

from bvllm_adapters import read_video
from bvllm_adapters.evaluation.needle import COLORS, Question
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.hosts.tiny_tokenizer import tiny_tokenizer
from bvllm_qwen2 import (
    BvllmQwen2Config,
    BvllmQwen2ForConditionalGeneration,
    BvllmQwen2Processor,
    TimmVisionConfig,
)
from bvllm_qwen2.processing import image_processor_for

WIDTH = 96  # of all parts that are trained
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
    pixels = image_processor_for(vision)
    pixels.image_mean = pixels.image_std = [0.5, 0.5, 0.5]  # as it was trained
    tokenizer = tiny_tokenizer(words=words)
    processor = BvllmQwen2Processor(
        pixels,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        question_vocabulary=words,
        max_question_tokens=32,
    )
    config = BvllmQwen2Config(
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH * 5 // 2,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        vision_config=vision,
        balanced_tokenizer={
            "num_frames": num_frames,
            "tokens_per_frame": tokens_per_frame,
            "max_tokens": num_frames * tokens_per_frame,
            "qformer_width": WIDTH,
            "qformer_layers": 2,
            "qformer_heads": 4,
            "cross_attention_frequency": 1,
            "vocab_size": len(words),
            "vocabulary": words,
            "max_question_tokens": 32,
            "straight_through": True,
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        initializer_range=0.05,
        vision_chunk_size=4,  # more are slower on a CPU
    )
    model = BvllmQwen2ForConditionalGeneration(config)
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

    def __init__(self, cls: Tensor, patches: Tensor, shown: Tensor) -> None:
        self.cls, self.patches, self.shown = cls.half(), patches.half(), shown
        number = np.arange(len(shown))
        self.empty = number[shown[:, 0].numpy() < 0].reshape(-1, CLIP_FRAMES // NEEDLE_EVERY)
        of_kind = defaultdict(list)
        for frame in number[::NEEDLE_EVERY]:
            of_kind[tuple(shown[frame].tolist())].append((frame, frame + 1))
        self.cards = {key: np.array(frames) for key, frames in of_kind.items()}

    def frames_of(self, haystack: Any, rng: np.random.Generator) -> np.ndarray:
        """(T,) frames of the bank that make up this video."""
        frames = np.empty(haystack.num_frames, np.int64)
        for scene in haystack.scenes:
            start, end = int(scene.start), int(scene.end)
            frames[start:end] = rng.choice(self.empty[rng.integers(len(self.empty))], end - start)
        for card in haystack.needles:
            alike = self.cards[labels_of(card)]
            frames[card.start : card.start + card.length] = alike[
                rng.integers(len(alike)), : card.length
            ]
        return frames


def labels_of(card: Any) -> tuple[int, int, int]:
    return (
        list(CATEGORIES).index(card.category),
        COLOR_NAMES.index(card.color),
        STYLES.index(card.style),
    )


class CardLabels(nn.Module):
    """Reads category, colour and presence of a card off a feature, linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(WIDTH, len(CATEGORIES) + len(COLORS) + 1)

    def loss(self, feature: Tensor, shown: Tensor) -> Tensor:
        """(B, C) features, (B, 3) labels, -1 where there is no card."""
        here = shown[:, 0] >= 0
        *about, present = self.heads(feature).split([len(CATEGORIES), len(COLORS), 1], dim=1)
        loss = F.binary_cross_entropy_with_logits(present[:, 0], here.float())
        for i, logits in enumerate(about):
            loss = loss + F.cross_entropy(logits[here], shown[here, i])
        return loss


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


def fill_bank(model: Any, processor: Any, media: Media, *, clips: int, seed: int) -> FootageBank:
    """Clips that show a card in two frames of three, through mp4 files, decoder and tower."""
    cls, patches, shown = [], [], []
    kinds = cycle(product(media.categories, COLOR_NAMES, STYLES))  # as many of each
    with tempfile.TemporaryDirectory() as folder:
        for number in range(clips):
            rng = np.random.default_rng([seed, number])
            starts = range(0, CLIP_FRAMES, NEEDLE_EVERY)
            cards = tuple(
                draw_card(
                    rng, media, category=category, color=color, style=style, start=start, length=2,
                    split="train",
                )
                for start, (category, color, style) in zip(starts, kinds, strict=False)
            )  # fmt: skip
            scenes = draw_footage(rng, media, CLIP_FRAMES, "train")
            haystack = FootageHaystack(CLIP_FRAMES, scenes, cards, ())
            haystack.write(Path(folder) / "clip.mp4", size=SIZE)
            frames = torch.from_numpy(read_video(Path(folder) / "clip.mp4").frames)
            seen = model.vision_tower(normalized(frames.permute(0, 3, 1, 2), processor), "mean")
            cls.append(seen[0].half())
            patches.append(seen[1].half())
            about = torch.full((CLIP_FRAMES, 3), -1)
            for card in cards:
                about[card.start : card.start + card.length] = torch.tensor(labels_of(card))
            shown.append(about)
            if (number + 1) % 20 == 0:
                print(f"bank      {number + 1:>5} of {clips} clips", flush=True)
    return FootageBank(torch.cat(cls), torch.cat(patches), torch.cat(shown))


def train(
    media: Media, *, seed: int, work: Path, method: str = LEARNED, scale: float = 1.0
) -> tuple[BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor]:
    """All stages that are not in `work` yet; what a method reads by is trained as ours is."""
    work.mkdir(parents=True, exist_ok=True)
    model, processor = build(media, seed)
    model.balanced_tokenizer = tokenizer_of_method(method, model.config.balanced_tokenizer_config)
    tokenizer = model.balanced_tokenizer
    readers = (tokenizer.spatial_sampler, tokenizer.projection, model.language_model)
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
            fill_bank(model, processor, media, clips=max(5, round(160 * scale)), seed=0).save(bank)
        return FootageLearner(model, processor, FootageBank.load(bank), seed, media)

    def reading() -> None:
        labels, match = CardLabels(), nn.Linear(WIDTH, 1)
        parameters = _parameters(*readers, labels, match)
        optimize("reading", learner().read(labels, match), parameters, steps=steps(700), lr=2e-3)

    def selection() -> None:
        parameters = _parameters(*choosers)
        optimize("selection", learner().cover(), parameters, steps=steps(400), lr=2e-3)

    def joint() -> None:
        groups = [
            {"params": _parameters(*readers)},
            {"params": _parameters(*choosers), "lr": 5e-5},
        ]
        optimize("joint", learner().answer(lengths), groups, steps=steps(joint_steps), lr=5e-4)

    model.train()
    _once(work / f"reading_{reader}_{seed}.safetensors", nn.ModuleList(readers), reading)
    if choosers:
        _once(work / f"selection_{name}_{seed}.safetensors", choosers[0], selection)
    _once(work / f"joint_{name}_{seed}.safetensors", nn.ModuleList([*readers, *choosers]), joint)
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
