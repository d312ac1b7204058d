"""What the parts of the demo model learn by: one loss for each stage of train_demo.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from needle_bank import Bank, Example, examples
from torch import Tensor, nn

from bvllm_adapters.budget_merger import merge_to
from bvllm_adapters.evaluation.needle import COLORS, PLACES, Question
from bvllm_adapters.features import VisualTokens
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.hosts.splice import splice
from bvllm_adapters.question import pad
from bvllm_qwen2 import BvllmQwen2ForConditionalGeneration, BvllmQwen2Processor

NEEDLES = range(2, 9)  # in a video that is trained on
LENGTHS = (16, 32, 64)  # frames of such a video


class FrameLabels(nn.Module):
    """Reads what a needle shows, and whether there is one, off a feature, linearly.

    Args:
        kinds: how many there are of each of its attributes; by default digits, colours, places.
    """

    def __init__(self, width: int, kinds: Sequence[int] = (10, len(COLORS), len(PLACES))) -> None:
        super().__init__()
        self.sizes = [*kinds, 1]
        self.heads = nn.Linear(width, sum(self.sizes))

    def loss(self, feature: Tensor, shown: Tensor) -> Tensor:
        """(B, C) features, (B, A) labels, one for each attribute or more; -1: no needle."""
        here = shown[:, 0] >= 0
        *attributes, present = self.heads(feature).split(self.sizes, dim=1)
        loss = F.binary_cross_entropy_with_logits(present[:, 0], here.float())
        for i, logits in enumerate(attributes):
            loss = loss + F.cross_entropy(logits[here], shown[here, i])
        return loss


class Learner:
    """A model, a bank of what its tower saw, and what the two are asked."""

    def __init__(
        self,
        model: BvllmQwen2ForConditionalGeneration,
        processor: BvllmQwen2Processor,
        bank: Bank,
        seed: int,
    ) -> None:
        self.model, self.processor, self.bank = model, processor, bank
        self.tokenizer = model.balanced_tokenizer
        self.rng = np.random.default_rng([seed, 2])
        self.prompt = cache(self._prompt)
        self.streams: dict[tuple[int, int], Iterator[Example]] = {}

    def examples(
        self, count: int, num_frames: int | None = None, of: Sequence[int] = NEEDLES
    ) -> list[Example]:
        """About videos of this length, or of two frames a needle and a few more.

        Args:
            of: how many needles a video may have.
        """
        found = []
        for _ in range(count):
            needles = int(self.rng.choice(of))
            key = num_frames or 2 * needles + 4, needles
            if key not in self.streams:
                self.streams[key] = examples(
                    self.bank, self.rng, num_frames=key[0], needles=key[1], split="train"
                )
            found.append(next(self.streams[key]))
        return found

    def read(self, labels: FrameLabels, match: nn.Linear) -> Callable[[float], Tensor]:
        """Loss of answers about M frames, all of which are kept; M grows as training goes on.

        As BLIP-2's Q-Former learns to tell whether an image matches a text, the sampler learns
        beside it, through `match`, whether a frame is asked about, and through `labels` what it
        shows.
        """
        config = self.tokenizer.config
        sampler: Any = self.tokenizer.spatial_sampler

        def loss(done: float) -> Tensor:
            most = 1 if done < 0.1 else 2 if done < 0.25 else config.num_frames
            # Mostly as many as there will be, so that most questions can be asked.
            kept = most if self.rng.random() < 0.5 else int(self.rng.integers(1, most + 1))
            batch = [e for e in self.examples(96) if len(e.shows) <= kept <= len(e.frames)][:64]
            few = [self._few_frames(example, kept) for example in batch]
            frames = torch.from_numpy(np.stack([frames for frames, _ in few])).flatten()
            asked_about = torch.from_numpy(np.stack([asked for _, asked in few])).flatten()
            patches = self.bank.patches[frames].float()
            ids, mask = self._questions(batch)
            tokens = sampler(
                patches,
                ids.repeat_interleave(kept, dim=0),
                mask.repeat_interleave(kept, dim=0),
            )
            mean = tokens.mean(dim=1)
            beside = labels.loss(mean, self.bank.shown[frames])
            beside = beside + F.binary_cross_entropy_with_logits(
                match(mean)[:, 0], asked_about.float()
            )
            left = int(self.rng.integers(1, tokens.shape[1] + 1))
            tokens = self.tokenizer.projection(merge_to(tokens, left)[0])
            answers = self._answer_loss(batch, tokens.view(len(batch), kept * left, -1))
            return answers + 0.3 * (1 - done) * beside

        return loss

    def _few_frames(self, example: Example, kept: int) -> tuple[np.ndarray, np.ndarray]:
        """(kept,) frames of the bank, one of each needle asked about, others at random.

        And (kept,) whether each shows one asked about.
        """
        wanted = [int(self.rng.choice(positions)) for positions in example.shows]
        others = np.setdiff1d(np.arange(len(example.frames)), wanted)
        more = self.rng.choice(others, size=kept - len(wanted), replace=False)
        picked = np.sort(np.concatenate([wanted, more]).astype(int))
        return example.frames[picked], np.isin(picked, [p for of in example.shows for p in of])

    def cover(self) -> Callable[[float], Tensor]:
        """-log of the probability that some choice shows a needle, over the needles asked about.

        Softmaxed scores are the probabilities of choices by Gumbel-argmax.
        """
        selector = self.tokenizer.frame_selector
        assert isinstance(selector, FrameSelector)

        def loss(done: float) -> Tensor:
            batch = self.examples(64, int(self.rng.choice(LENGTHS)))
            cls = self.bank.cls[torch.from_numpy(np.stack([e.frames for e in batch]))].float()
            chosen = selector.batch_scores(cls, *self._questions(batch)).softmax(dim=2)
            missed = [
                (1 - chosen[i][:, positions].sum(dim=1)).clamp_min(1e-6).log().sum()
                for i, example in enumerate(batch)
                for positions in example.shows
            ]
            return -torch.log1p(1e-6 - torch.stack(missed).exp()).mean()

        return loss

    def answer_softly(self) -> Callable[[float], Tensor]:
        """As `answer`, with soft choices that grow hard and videos that grow long.

        So a selector learns from the answers alone, who never hears which frames are asked about.
        """
        selector = self.tokenizer.frame_selector
        assert isinstance(selector, FrameSelector)

        def loss(done: float) -> Tensor:
            selector.straight_through, hard = False, selector.straight_through
            selector.temperature, final = 0.1**done, selector.temperature
            lengths = LENGTHS[:1] if done < 0.5 else LENGTHS[:2]
            value = self.answer(lengths)(done)
            selector.straight_through, selector.temperature = hard, final
            return value

        return loss

    def answer(self, lengths: Sequence[int] = LENGTHS) -> Callable[[float], Tensor]:
        """Loss of answers through the whole tokenizer, under a budget drawn at random."""
        most = self.tokenizer.config.max_tokens or 0
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**62)))

        def loss(done: float) -> Tensor:
            batch = self.examples(32, int(self.rng.choice(lengths)))
            budget = most if self.rng.random() < 0.4 else int(self.rng.integers(4, most + 1))
            tokens: list[VisualTokens] = self.tokenizer(
                [self.bank.features(example.frames) for example in batch],
                [example.question.text for example in batch],
                max_tokens=budget,
                generator=generator,
            )
            return self._answer_loss(batch, [video.tokens for video in tokens])

        return loss

    def _questions(self, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
        return pad([self.tokenizer.question_tokenizer(e.question.text) for e in batch])

    def _answer_loss(self, batch: Sequence[Example], tokens: Iterable[Tensor]) -> Tensor:
        prompts = [self.prompt(example.question) for example in batch]
        ids, mask = pad([ids for ids, _ in prompts])
        labels = torch.full_like(ids, -100)
        for row, (prompt, asked) in zip(labels, prompts, strict=True):
            row[asked : len(prompt)] = prompt[asked:]
        spliced = splice(
            ids,
            self.model.get_input_embeddings(),
            list(tokens),
            self.model.placeholders,
            attention_mask=mask.long(),
            labels=labels,
        )
        loss: Tensor = self.model.language_model(
            inputs_embeds=spliced.inputs_embeds,
            attention_mask=spliced.attention_mask,
            position_ids=spliced.position_ids,
            labels=spliced.labels,
        ).loss
        return loss

    def _prompt(self, question: Question) -> tuple[Tensor, int]:
        """Ids of the question with its answer, and how many of them are the question's."""
        asked = self.processor.apply_chat_template(
            [{"role": "user", "content": f"<video>\n{question.text}"}], add_generation_prompt=True
        )
        before = self.processor.tokenizer(asked)["input_ids"]
        after = self.processor.tokenizer(f"{question.answer}<|im_end|>")["input_ids"]
        return torch.tensor(before + after), len(before)
