"""Frames that show what the question is about, by a CLIP or SigLIP that has read both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvllm_adapters.checks import check_number
from bvllm_adapters.context import in_float32
from bvllm_adapters.features import Selection
from bvllm_adapters.question import without
from bvllm_adapters.selectors.choosers import inverse_transform
from bvllm_adapters.selectors.coverage import Chooser, check_frames, covered, novelty
from bvllm_adapters.selectors.query import pieces, question_line
from bvllm_adapters.selectors.scores import min_max, smoothed
from bvllm_adapters.selectors.scout_files import ScoutFiles, read_scout
from bvllm_adapters.weights.device import device_of
from bvllm_adapters.weights.hub import local_folder
from bvllm_adapters.weights.json_file import blamed
from bvllm_adapters.weights.whole import saved_whole


class RelevanceSelector(nn.Module):
    """Covered MMR (see `covered_mmr`) by relevance: the cosine of each frame with the question, as
    a scout sees both, a small CLIP or SigLIP of transformers. It is not trained here.

    The question is read without options and instructions (see `question_line`). What is too long
    for the scout is read in pieces, whose mean counts, and the selection's `note` says so. With an
    empty one frames are chosen by novelty, as `CoverageSelector` does.

    Axes: T frames of the video, k of them at once, C' width of the scout, K frames wanted.

    Args:
        scout: of `read_scout`; see `from_pretrained`.
        diversity: from 0, relevance alone, to 1, differences of the chosen frames alone.
        coverage: the share of the K frames that is held to equal bins of time; from 0 to 1.
        smooth_seconds: over which relevance is averaged, against single frames; 0: not at all.
        novelty: how much local novelty counts beside relevance, for a scout that knows little of
            what is asked about; 0: not at all.
        novelty_seconds: before and after a frame, what it is new against.
        choose: in place of covered MMR, see `bvllm_adapters.selectors.choosers`.
    """

    sees = True

    def __init__(
        self,
        scout: ScoutFiles,
        *,
        diversity: float = 0.5,
        coverage: float = 0.5,
        smooth_seconds: float = 3.0,
        novelty: float = 0.0,
        novelty_seconds: float = 40.0,
        choose: Chooser | None = None,
    ) -> None:
        super().__init__()
        check_number("smooth_seconds", smooth_seconds, least=0)
        check_number("novelty", novelty, least=0)
        check_number("novelty_seconds", novelty_seconds, above=0)
        self.own_choice = choose
        self.choose = choose or covered(diversity, coverage)
        self.diversity, self.coverage, self.smooth_seconds = diversity, coverage, smooth_seconds
        self.novelty, self.novelty_seconds = novelty, novelty_seconds
        self.files, self.scout = scout, scout.model
        self.family, self.tokenizer, self.numbers = scout.family, scout.tokenizer, scout.numbers
        self.requires_grad_(False).train(False)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> RelevanceSelector:
        """With the scout of a folder or hub id, such as google/siglip2-base-patch16-224.

        Runs no code of it; downloads nothing when HF_HUB_OFFLINE is set.

        Args:
            revision: branch, tag or commit of a hub id. dtype: of the scout's weights.
            settings: of the constructor.

        Raises:
            FileNotFoundError: there is no such folder. CheckpointError: its files cannot be read,
            do not fit one another, or are of another kind of model.
        """
        folder = local_folder(source, "config.json", revision)
        selector = cls(read_scout(folder, dtype), **settings)
        with blamed(folder):  # settings that it was made with, but cannot work by
            selector.embed(selector.read("What?"))
            selector.see(torch.zeros(1, 3, 32, 32))
        return selector

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the scout as transformers does, for `from_pretrained`; whole or not at all."""
        with saved_whole(folder) as new:
            for part in (self.scout, self.tokenizer, self.files.image_processor):
                part.save_pretrained(new)

    @property
    def name(self) -> str:
        """By which `named_selector` makes it, with its scout; "custom": it does not."""
        if self.own_choice is None:
            return "relevance"
        return "inverse-transform" if self.own_choice is inverse_transform else "custom"

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments but for the scout, as JSON."""
        names = ("diversity", "coverage", "smooth_seconds", "novelty", "novelty_seconds")
        return {**{name: getattr(self, name) for name in names}, "by": "scout"}

    def train(self, mode: bool = True) -> RelevanceSelector:
        """Modifications: stays in evaluation mode."""
        return super().train(False)

    @property
    def limit(self) -> int:
        """How many tokens the scout's text tower reads at once."""
        return int(self.scout.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def see(self, frames: Tensor) -> Tensor:
        """(k, 3, H, W) RGB from 0 to 1, of any size -> (k, C') float32 features of unit length."""
        weight = next(self.scout.parameters())
        with in_float32(weight):
            pixels = self.numbers(frames.to(device_of(self.scout)))
            return _unit(self.scout.get_image_features(pixel_values=pixels.to(weight.dtype)))

    def forward(
        self,
        cls: Tensor,
        question: str,
        *,
        seconds: Tensor,
        num_frames: int,
        generator: torch.Generator | None = None,
        query: str | None = None,
    ) -> Selection:
        """Choose frames of one video; the same in training as in evaluation.

        Args:
            cls: (T, C') what `see` made of all frames. question: may be empty.
            seconds: (T,) their times. num_frames: K. generator: is not needed.
            query: what the scout reads in place of the question, as it is; best a caption of
                what is looked for.

        Returns:
            min(K, T) different whole frames in time order, with the (T,) scores of all.

        Raises:
            ValueError, TypeError: naming the argument, what came and what was wanted.
        """
        check_frames(cls, seconds, num_frames)
        for name, text in (("question", question), ("query", query)):
            if not (isinstance(text, str) or (name == "query" and text is None)):
                raise TypeError(f"{name}: got {type(text).__name__}, wanted a string")
        parts = self.read(question_line(question) if query is None else query)
        scores = self.scores(cls, parts, seconds).to(cls.device)
        frames = self.choose(cls, scores, seconds, num_frames)
        note = None
        if len(parts) > 1:
            note = (
                f"the scout reads {self.limit} tokens at once, so the question was read in "
                f"{len(parts)} parts"
            )
        return Selection.whole(frames, len(cls), scores=scores, note=note)

    def scores(self, cls: Tensor, parts: Sequence[str], seconds: Tensor) -> Tensor:
        """(T, C') and what `read` made of a question -> (T,) float32 on the CPU, from 0 to 1."""
        cls = F.normalize(cls.float(), dim=1)
        if not parts:
            return novelty(cls, seconds, self.novelty_seconds, 0)
        with in_float32(cls), torch.no_grad():
            asked = self.embed(parts).mean(dim=0).to(cls.device)
            if cls.shape[1] != len(asked):
                raise ValueError(
                    f"cls: got width {cls.shape[1]}, wanted {len(asked)} as the scout sees frames"
                )
            relevance = min_max(smoothed(cls @ asked, seconds, self.smooth_seconds))
        if self.novelty:
            new = novelty(cls, seconds, self.novelty_seconds, 0)
            relevance = min_max(relevance + self.novelty * new)
        return relevance

    def read(self, text: str) -> list[str]:
        """A text in as many parts as the scout needs to read all of it; none of an empty one."""
        special = {str(token) for token in self.tokenizer.all_special_tokens} - {""}
        text = without(text, special)
        if self.family == "Siglip":  # as it was trained, which not all its tokenizers know
            text = text.lower()
        return pieces(text, lambda part: len(self._ids(part)) <= self.limit)

    @torch.no_grad()
    def embed(self, parts: Sequence[str]) -> Tensor:
        """(n, C') float32 of unit length: each part of a text."""
        # SigLIP has seen texts filled up to its limit alone, and no mask.
        fill = {"padding": "max_length", "max_length": self.limit}
        found = []
        with in_float32(next(self.scout.parameters())):
            for part in parts:
                ids = self._ids(part, **(fill if self.family == "Siglip" else {}))
                asked = torch.tensor([ids], device=device_of(self.scout))
                found.append(_unit(self.scout.get_text_features(input_ids=asked)))
        return torch.cat(found)

    def _ids(self, text: str, **how: Any) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=False, verbose=False, **how)["input_ids"]
        rows = self.scout.config.text_config.vocab_size
        if max(ids) >= rows:
            raise ValueError(
                f"tokenizer: got the id {max(ids)}, wanted less than {rows} as the scout has words"
            )
        return ids


def _unit(features: Any) -> Tensor:
    """Rows of unit length in float32, of what transformers gives: in some versions an output."""
    found: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(found.float(), dim=1)
