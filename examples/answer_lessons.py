"""How a frame selector may learn which frames matter from questions and answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from needle_bank import Example
from needle_lessons import LENGTHS, Learner
from torch import Tensor

from bvllm_adapters.evaluation.needle import Question
from bvllm_adapters.frame_selector import FrameSelector
from bvllm_adapters.hosts.splice import splice
from bvllm_adapters.question import pad
from bvllm_adapters.selectors.coverage import CoverageSelector
from bvllm_adapters.training.answers_alone import EVENNESS, covered, entropy


class AnswerLearner(Learner):
    """Ways to teach the selector that look at questions, answers and videos, not at `shows`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.noise = torch.Generator().manual_seed(int(self.rng.integers(2**62)))

    @property
    def selector(self) -> FrameSelector:
        selector = self.tokenizer.frame_selector
        assert isinstance(selector, FrameSelector)
        return selector

    def choices(self, batch: Sequence[Example]) -> Tensor:
        """(B, K, T) log-probabilities of each query's choice, by Gumbel-argmax, of equally long
        videos."""
        cls = self.bank.cls[torch.from_numpy(np.stack([e.frames for e in batch]))].float()
        return self.selector.batch_scores(cls, *self._questions(batch)).log_softmax(dim=2)

    def likelihood(self, batch: Sequence[Example], chosen: Tensor) -> Tensor:
        """(B, N) log-likelihoods of each answer, given some frames of its video and no others.

        Args:
            chosen: (B, N, K) positions of K frames in the video.
        """
        return self._read(batch, chosen)[0]

    def right(self, batch: Sequence[Example], chosen: Tensor) -> Tensor:
        """(B,) whether the answer is the likeliest, word by word. Args: (B, K), see above."""
        return self._read(batch, chosen[:, None])[1][:, 0]

    @torch.no_grad()
    def _read(self, batch: Sequence[Example], chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Both, (B, N) each, of (B, N, K) choices.

        Frames that are chosen twice count once, and equal sets are read once.
        """
        asked = [(i, tuple(sorted(set(at)))) for i, of in enumerate(chosen.tolist()) for at in of]
        sets = {each: row for row, each in enumerate(dict.fromkeys(asked))}
        frames = {each: row for row, each in enumerate({(i, t) for i, at in sets for t in at})}
        tokens = self._tokens(batch, list(frames))
        seen = [tokens[[frames[i, t] for t in at]].flatten(0, 1) for i, at in sets]
        likelihood, right = self._answered([batch[i].question for i, _ in sets], seen)
        of = torch.tensor([sets[each] for each in asked]).view(chosen.shape[:2])
        return likelihood[of], right[of]

    def _tokens(self, batch: Sequence[Example], frames: Sequence[tuple[int, int]]) -> Tensor:
        """(F, R, D) what the language model reads of frames: (example, position) each."""
        of, places = [i for i, _ in frames], [int(batch[i].frames[t]) for i, t in frames]
        ids, mask = self._questions(batch)
        sampler: Any = self.tokenizer.spatial_sampler
        tokens = sampler(self.bank.patches[places].float(), ids[of], mask[of])
        projected: Tensor = self.tokenizer.projection(tokens)
        return projected

    def _answered(
        self, questions: Sequence[Question], seen: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(N,) log-likelihood of each answer given its visual tokens, and whether it is given."""
        prompts = [self.prompt(question) for question in questions]
        ids, mask = pad([ids for ids, _ in prompts])
        labels = ids.masked_fill(~mask, -100)
        for row, (_, asked) in zip(labels, prompts, strict=True):
            row[:asked] = -100
        spliced = splice(
            ids,
            self.model.get_input_embeddings(),
            seen,
            self.model.placeholders,
            attention_mask=mask.long(),
            labels=labels,
        )
        logits = self.model.language_model(
            inputs_embeds=spliced.inputs_embeds,
            attention_mask=spliced.attention_mask,
            position_ids=spliced.position_ids,
        ).logits
        assert spliced.labels is not None
        logits, labels = logits[:, :-1], spliced.labels[:, 1:]
        of_words = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        right = (logits.argmax(dim=2) == labels) | (labels < 0)
        return -of_words.sum(dim=1), right.all(dim=1)

    def softly(
        self,
        done: float,
        *,
        hard: bool = False,
        apart: float = 0.0,
        spread: float = 0.0,
        needles: bool = False,
    ) -> Tensor:
        """Loss of the answers through the whole tokenizer; choices grow hard, videos long.

        Args:
            hard: one-hot forwards, with straight-through gradients. apart: weight of how much the
                queries' choices overlap. spread: weight, at first, of how far all queries' choices
                together are from even. needles: few at first, too.
        """
        selector = self.selector
        before = selector.straight_through, selector.temperature
        selector.straight_through, selector.temperature = hard, 0.1**done
        length = int(self.rng.choice(LENGTHS[:1] if done < 0.5 else LENGTHS[:2]))

        most = 3 + int(6 * min(1.0, 2 * done)) if needles else 9
        batch = self.examples(16, length, range(2, most))
        tokens = self.tokenizer(
            [self.bank.features(example.frames) for example in batch],
            [example.question.text for example in batch],
            generator=self.noise,
        )
        loss = self._answer_loss(batch, [video.tokens for video in tokens])
        selector.straight_through, selector.temperature = before
        if apart or spread:
            chosen = self.choices(batch).exp()
            both = (chosen @ chosen.transpose(1, 2)).triu(1).sum(dim=(1, 2))
            mean = chosen.mean(dim=1)
            uneven = (mean * (mean * length).clamp_min(1e-9).log()).sum(dim=1)
            loss = loss + (apart * both + spread * (1 - done) * uneven).mean()
        return loss

    def as_coverage(self, done: float) -> Tensor:
        """-log of the probability that frames of covered MMR are chosen: a teacher who has not read
        the question."""
        batch = self.examples(16, int(self.rng.choice(LENGTHS)))
        teacher = CoverageSelector(by="tower")
        chosen = covered(self.choices(batch))
        of_teacher = []
        for example, row in zip(batch, chosen, strict=True):
            cls = self.bank.cls[torch.from_numpy(example.frames)].float()
            seconds = torch.arange(len(cls), dtype=torch.float64)
            picked = teacher(cls, "", seconds=seconds, num_frames=self.selector.num_frames)
            of_teacher.append(row[picked.frame].log().mean())
        return -torch.stack(of_teacher).mean()

    def by_frames(self, done: float, *, count: int = 16) -> Tensor:
        """Cross-entropy of the choices to the frames under which the reader, seeing each alone,
        finds the answer likeliest.

        Half of the `count` frames that it reads are drawn evenly, half are the likeliest to be
        chosen: so what is wrongly chosen is soon read.
        """
        batch = self.examples(16, int(self.rng.choice(lengths(done))))
        chosen = covered(self.choices(batch))
        even = torch.rand(chosen.shape, generator=self.noise)
        best = chosen.detach().topk(count // 2, dim=1).indices
        even.scatter_(1, best, -1.0)
        read = torch.cat([best, even.topk(count // 2, dim=1).indices], dim=1)
        likelihood = self.likelihood(batch, read[..., None])
        return -(likelihood.softmax(dim=1) * chosen.gather(1, read).log()).sum(dim=1).mean()

    def by_sets(self, done: float, *, count: int = 8, even: float = EVENNESS) -> Tensor:
        """Policy gradient: choices under which the reader finds the answer likelier than under
        other choices of the same video become likelier.

        Args:
            count: choices of a video. even: weight of their entropy.
        """
        batch, log_chosen, picks = self._drawn(done, count)
        reward = self.likelihood(batch, picks.transpose(1, 2)).exp()  # (B, N)
        better = (reward - reward.mean(dim=1, keepdim=True)) * count / (count - 1)
        of_picks = log_chosen.gather(2, picks).sum(dim=1)
        return -(better * of_picks).mean() - even * entropy(log_chosen)

    def by_difference(self, done: float, *, count: int = 2, even: float = EVENNESS) -> Tensor:
        """As `by_sets`, but each query's choice by how much likelier it makes the answer than the
        other queries' choices alone do: that does not depend on it, so it is a fair baseline, and
        a frame that is chosen already gains nothing.

        Args:
            count: choices of a video, each of which is read with all its frames and with all but
                one. even: weight of their entropy.
        """
        batch, log_chosen, picks = self._drawn(done, count)
        queries = picks.shape[1]
        # In place of each query in turn stands another's choice once more, which is read once.
        instead = torch.arange(queries).repeat(queries, 1)
        instead.diagonal().add_(1).remainder_(queries)
        sets = picks.transpose(1, 2)
        read = torch.cat([sets[:, :, None], sets[:, :, instead]], dim=2)  # (B, N, 1 + K, K)
        reward = self.likelihood(batch, read.flatten(1, 2)).exp().view(read.shape[:3])
        added = (reward[:, :, :1] - reward[:, :, 1:]).transpose(1, 2)  # (B, K, N)
        return -(added * log_chosen.gather(2, picks)).sum(1).mean() - even * entropy(log_chosen)

    def _drawn(self, done: float, count: int) -> tuple[list[Example], Tensor, Tensor]:
        """Examples, (B, K, T) log-probabilities of choices, and (B, K, N) N choices of each."""
        batch = self.examples(16, int(self.rng.choice(lengths(done))))
        log_chosen = self.choices(batch)
        picks = torch.multinomial(
            log_chosen.detach().exp().flatten(0, 1), count, True, generator=self.noise
        )
        return batch, log_chosen, picks.view(*log_chosen.shape[:2], count)


def lengths(done: float) -> tuple[int, ...]:
    """Frames of the videos, which grow long."""
    return LENGTHS[:1] if done < 0.3 else LENGTHS[:2] if done < 0.6 else LENGTHS
