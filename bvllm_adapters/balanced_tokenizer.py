"""Stages 1 to 4 and the projection, composed (paper, sections 3.1 and 3.5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.budget_merger import (
    BudgetMerger,
    allot,
    budgets_of_frames,
    shares_of_prompts,
)
from bvllm_adapters.build import (
    FROM_CONFIG,
    build_budget_merger,
    build_projection,
    build_sampler,
    build_scout,
    build_selector,
    build_temporal_merger,
)
from bvllm_adapters.checks import check_count, checked_prompts, takes
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.context import generators
from bvllm_adapters.features import FrameFeatures, Selection, VisualTokens, mix
from bvllm_adapters.ledger import stage
from bvllm_adapters.question import (
    QuestionTokenizer,
    as_text,
    question_ids,
    question_tokenizer,
)
from bvllm_adapters.scout import check_widths
from bvllm_adapters.selectors.choosing import checked_queries, choose
from bvllm_adapters.selectors.saved import PretrainedWithScout
from bvllm_adapters.spatial_sampler import sample_frames


class BalancedTokenizer(PretrainedWithScout, nn.Module):
    """Frames of a video and a question in, a bounded number of visual tokens out.

    Axes: T frames, P patches, C vision width, M chosen frames, R tokens per frame, H Q-Former
    width, N visual tokens, D hidden size of the language model.

    Args:
        config: sizes and settings; what the stages are built from.
        frame_selector, temporal_merger, spatial_sampler, budget_merger, projection: a module of
            the same calling convention instead of the built one, or None to go without: all
            frames, no merging of frames, all patches, no limit, tokens as they are. A sampler of
            one's own needs forward(frames, text_ids, text_mask) alone.
        scout: what gives the features that frames are chosen by: called with the (k, 3, S, S)
            pixels of the tower, and with the tower, it gives (k, C'). None: the tower does.
    """

    def __init__(
        self,
        config: BalancedTokenizerConfig,
        *,
        frame_selector: nn.Module | None = FROM_CONFIG,
        temporal_merger: nn.Module | None = FROM_CONFIG,
        spatial_sampler: nn.Module | None = FROM_CONFIG,
        budget_merger: nn.Module | None = FROM_CONFIG,
        projection: nn.Module | None = FROM_CONFIG,
        scout: nn.Module | None = FROM_CONFIG,
    ) -> None:
        super().__init__()
        if budget_merger is None and config.max_tokens is not None:
            raise ValueError(
                f"budget_merger: got None, wanted one, as max_tokens={config.max_tokens} is a limit"
            )
        self.config = config

        def part(given: nn.Module | None, build: Callable[[], nn.Module | None]) -> Any:
            return build() if given is FROM_CONFIG else given

        self.scout = part(scout, lambda: build_scout(config))
        self.frame_selector = part(frame_selector, lambda: build_selector(config))
        self.temporal_merger = part(temporal_merger, lambda: build_temporal_merger(config))
        self.spatial_sampler = part(spatial_sampler, lambda: build_sampler(config))
        self.budget_merger = part(budget_merger, lambda: build_budget_merger(config))
        sampled = config.vision_width if self.spatial_sampler is None else config.qformer_width
        self.projection = part(projection, lambda: build_projection(config, sampled))

    def forward(
        self,
        features: Sequence[FrameFeatures],
        questions: Sequence[str | Tensor],
        *,
        prompts: Sequence[int] | None = None,
        max_tokens: int | None = None,
        queries: Sequence[str | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> list[VisualTokens]:
        """Visual tokens of each visual input.

        Args:
            features: of each video or image; lengths may differ.
            questions: one for each, a string (may be empty) or its (L,) WordPiece ids, which a
                selector without training cannot read.
            prompts: which prompt each belongs to; those of one prompt share the budget.
                None: each has a prompt of its own.
            max_tokens: visual tokens per prompt in place of the config's.
            queries: what a selector's scout reads in place of each question; None: the question.
            generator: source of training's noise; None: the seeds of `noise_from` or, outside of
                it, torch's global generator.

        Returns:
            For each input, N tokens of width D with their frames and sizes; N of one prompt
            together are max_tokens, or all there are if those are fewer.

        Raises:
            ValueError: naming the argument, what came and what was wanted.
        """
        texts = self._read(features, questions)
        prompts = checked_prompts(prompts, len(features))
        max_tokens = self._checked_budget(max_tokens)
        queries = checked_queries(self.frame_selector, queries, len(features))
        if not features:
            return []

        sources = [generator] * len(features)
        if generator is None:
            sources = generators(len(features), features[0].cls.device)
        inputs = Counter(prompts)
        budgets = budgets_of_frames([video.beside for video in features], prompts, max_tokens)
        with stage("selector"):
            selections = [
                self.choose(video, as_text(said), source, budgets[prompt], inputs[prompt], query)
                if self.chooses_untrained
                else self.select(video, text, source, max_tokens)
                for video, said, text, source, prompt, query in zip(
                    features, questions, texts, sources, prompts, queries, strict=True
                )
            ]
        with stage("merge"):
            if self.temporal_merger is not None:
                selections = [self.temporal_merger(selection) for selection in selections]
        with stage("sampler"):
            frames, looked = self.sample(features, selections, texts)
        with stage("budget"):
            tokens = self.fit(frames, selections, prompts, budgets, [v.room for v in features])
        with stage("projection"):
            projected = self.project(tokens)
        return [
            replace(
                visual,
                seconds=video.seconds,
                layout=video.layout,
                beside=video.beside if budgets[prompt] != max_tokens or max_tokens is None else 0,
                looked=maps,
            )
            for visual, video, prompt, maps in zip(
                projected, features, prompts, looked, strict=True
            )
        ]

    def select(
        self,
        video: FrameFeatures,
        text: Tensor,
        generator: torch.Generator | None = None,
        max_tokens: int | None = None,
    ) -> Selection:
        """Choose frames of one video; an image has nothing to choose from.

        Args:
            max_tokens: the budget, which limits a number of frames that follows the scores.
        """
        if self.frame_selector is None:
            return Selection.everything(video.num_frames, video.cls.device)
        if video.num_frames == 1:
            return Selection.single_frame(self.config.num_frames or 1, video.cls.device)
        limit = {}
        if self.config.frame_count != "fixed" and takes(self.frame_selector, "max_frames"):
            limit = {"max_frames": self.config.frames_within(max_tokens)}
        selection: Selection = self.frame_selector(
            video.cls.to(self.dtype), text, seconds=video.seconds, generator=generator, **limit
        )
        return selection

    def choose(
        self,
        video: FrameFeatures,
        question: str,
        generator: torch.Generator | None,
        max_tokens: int | None,
        inputs: int,
        query: str | None = None,
    ) -> Selection:
        """Choose frames of one video by a selector without training.

        Args:
            inputs: visual inputs of the prompt, for each of which the budget has an equal part.
            query: see `forward`.
        """
        read = self.config.tokens_per_frame if self.spatial_sampler is not None else None
        return choose(
            self.frame_selector,
            video,
            question,
            max_tokens=None if max_tokens is None else max(max_tokens // inputs, 1),
            native=read or video.patches_per_frame or 1,
            frames=self.config.num_frames,
            tokens_per_frame=self.config.tokens_per_frame,
            generator=generator,
            query=query,
        )

    def sample(
        self,
        features: Sequence[FrameFeatures],
        selections: Sequence[Selection],
        texts: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Mix the chosen frames and sample tokens of them: (M, R, H) for each video, and (M, R, P)
        where they looked, where that is noted; see `sample_frames`."""
        sampler: Any = self.spatial_sampler
        # Choices that are soft are mixed of patches that the sampler has prepared, if it does that.
        prepare: Callable[[Tensor], Tensor] | None = None
        if sampler is not None and takes(sampler, "prepared"):
            prepare = getattr(sampler, "prepare", None)
        dtype = self.dtype

        def before(patches: Tensor) -> Tensor:
            if self.keeps_tokens:  # a host's own
                return patches
            patches = patches.to(dtype)
            return patches if prepare is None else prepare(patches)

        frames = [
            mix(selection, video.patches, before)
            for selection, video in zip(selections, features, strict=True)
        ]
        if sampler is None:
            return frames, [None] * len(frames)
        return sample_frames(sampler, frames, texts, prepared=prepare is not None)

    def fit(
        self,
        frames: Sequence[Tensor],
        selections: Sequence[Selection],
        prompts: Sequence[int],
        budgets: Mapping[int, int | None],
        places: Sequence[int | None],
    ) -> list[VisualTokens]:
        """Share each prompt's budget among all frames of its visual inputs, and merge.

        Args:
            places: of each input, what its host's prompt has room for. Soft choices may be more
                than there are frames.
        """
        merger: Any = self.budget_merger if self.budget_merger is not None else BudgetMerger()
        weights = [selection.weight.tolist() for selection in selections]
        rooms = [
            [self.most_of(each, of)] * len(each)
            for each, of in zip(frames, selections, strict=True)
        ]
        rooms = [
            room if most is None else allot(room, most, weight)
            for room, most, weight in zip(rooms, places, weights, strict=True)
        ]
        shares = shares_of_prompts(rooms, weights, prompts, budgets)
        return [merger(*each) for each in zip(frames, shares, selections, strict=True)]

    def most_of(self, frames: Tensor, selection: Selection) -> int:
        """Tokens that each of (M, R, H) frames may keep: without a sampler the config may say, but
        for an image."""
        limit = self.config.tokens_per_frame if self.config.sampler == "none" else None
        image = selection.num_frames == 1
        return frames.shape[1] if limit is None or image else min(limit, frames.shape[1])

    def project(self, tokens: Sequence[VisualTokens]) -> list[VisualTokens]:
        """To the language model's width, all inputs in one call."""
        if self.projection is None:
            return list(tokens)
        projected = self.projection(torch.cat([video.tokens for video in tokens]))
        parts = projected.split([len(video) for video in tokens])
        return [video.with_tokens(part) for video, part in zip(tokens, parts, strict=True)]

    @property
    def question_tokenizer(self) -> QuestionTokenizer:
        """What all questions are read by, whoever asks: of the config's words and limit."""
        return question_tokenizer(self.config.max_question_tokens, self.config.vocabulary)

    @property
    def dtype(self) -> torch.dtype:
        """Of the learned weights; float32 where there are none."""
        weights = self.trained_parameters()
        return next((p.dtype for p in weights if p.is_floating_point()), torch.float32)

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """Those of stages that are trained; none of a selector without training."""
        stages = [self.spatial_sampler, self.temporal_merger, self.budget_merger, self.projection]
        if not self.chooses_untrained:
            stages.insert(0, self.frame_selector)
        for part in stages:
            yield from () if part is None else part.parameters()

    @property
    def keeps_tokens(self) -> bool:
        """Whether tokens are those that came, mixed and merged, and not made anew of them."""
        return self.spatial_sampler is None and self.projection is None

    @property
    def chooses_untrained(self) -> bool:
        """Whether the selector is one of those without training, which read the question's text."""
        return self.frame_selector is not None and takes(self.frame_selector, "question")

    def _read(
        self, features: Sequence[FrameFeatures], questions: Sequence[str | Tensor]
    ) -> list[Tensor]:
        """The questions as ids, each beside its video, if everything is as it should be."""
        if isinstance(features, FrameFeatures) or isinstance(questions, str):
            raise ValueError("features, questions: got a single one, wanted a list of each")
        if len(questions) != len(features):
            raise ValueError(f"questions: got {len(questions)}, wanted {len(features)} as features")
        given = self.chooses_untrained  # features of whatever width the selector sees
        check_widths(
            features,
            self.config.vision_width,
            cls=None if given else self.config.selection_width,
            cls_name="vision_width" if self.config.scout is None else "scout.width",
        )
        if given and self.spatial_sampler is None:
            return [torch.zeros(0, dtype=torch.int64) for _ in features]  # nobody reads them
        ids = question_ids(questions, self.question_tokenizer)
        return [text.to(video.cls.device) for text, video in zip(ids, features, strict=True)]

    def _checked_budget(self, max_tokens: int | None) -> int | None:
        if max_tokens is None:
            return self.config.max_tokens
        if self.budget_merger is None:
            raise ValueError(f"max_tokens: got {max_tokens}, wanted None without a budget_merger")
        return check_count("max_tokens", max_tokens)
