"""Accuracy and recall on the needle task, through mp4 files and the decoder."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from bvllm_adapters.balanced_tokenizer import BalancedTokenizer
from bvllm_adapters.checks import check_count
from bvllm_adapters.conversation import open_video
from bvllm_adapters.evaluation.intervals import share
from bvllm_adapters.evaluation.needle import Haystack, Question, make_haystack
from bvllm_adapters.features import FrameFeatures, VisualTokens
from bvllm_adapters.hosts.base import TOKENIZER, base_model
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.video.read import read_video


@dataclass(frozen=True)
class Row:
    """One method at one video length.

    Args:
        accuracy: share of questions answered right, over all kinds; low, high: its 95 % interval.
        recall: mean share of the needles asked about that a chosen frame with a token left shows.
        tokens: visual tokens used per question, on average. budget: visual tokens allowed.
        videos: how many. answers: how many questions about them. kinds: accuracy of each kind.
    """

    method: str
    frames: int
    needles: int
    accuracy: float
    low: float
    high: float
    recall: float
    tokens: float
    budget: int | None
    videos: int
    answers: int
    kinds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def evaluate(
    models: Mapping[str, nn.Module],
    processor: Any,
    *,
    frames: Sequence[int] = (32, 64, 128, 256, 512),
    needles: int = 3,
    videos: int = 60,
    seed: int = 0,
    max_tokens: int | None = None,
    watch: Callable[[Haystack], FrameFeatures] | None = None,
    progress: Callable[[], object] | None = None,
) -> list[Row]:
    """Ask models about the same new videos of held-out digits and photographs.

    Args:
        models: by the name of their method; wrapped or native ones that share one vision tower,
            that of the first, which sees each video once for all of them.
        processor: of these models.
        frames: lengths of the videos, at one frame a second. needles: in each. videos: of each
            length. seed: of the videos.
        max_tokens: budget in place of the models' own.
        watch: what the tower sees of a video; None: it is written to an mp4 file, decoded at one
            frame a second and encoded.
        progress: called after each video.

    Raises:
        ValueError: naming the argument. RuntimeError: a model exceeded the budget.
    """
    if not models:
        raise ValueError("models: got none, wanted at least one")
    check_count("videos", videos)
    check_count("seed", seed, least=0)
    if watch is None:
        watch = partial(_through_a_file, next(iter(models.values())), processor)
    rows = []
    for length in frames:
        tallies = {method: _Tally() for method in models}
        for number in range(videos):
            haystack = make_haystack([seed, length, number], num_frames=length, needles=needles)
            features = watch(haystack)
            for method, model in models.items():
                tally = tallies[method]
                tally.right.append([])
                for question in haystack.questions:
                    text, tokens = _ask(model, processor, features, question, max_tokens)
                    tally.add(haystack, question, text, tokens)
            if progress is not None:
                progress()
        for method, model in models.items():
            budget = _tokenizer(model).config.max_tokens if max_tokens is None else max_tokens
            rows.append(tallies[method].row(method, length, needles, budget))
    return rows


def _through_a_file(model: nn.Module, processor: Any, haystack: Haystack) -> FrameFeatures:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "haystack.mp4"
        haystack.write(file)
        video = read_video(file)  # the file is gone when chosen frames are looked at again
    # Several models are asked, each of which may choose other frames.
    return open_video(model, video, processor=processor, encoding=Encoding(patches="keep")).features


def _ask(
    model: nn.Module,
    processor: Any,
    features: FrameFeatures,
    question: Question,
    max_tokens: int | None,
) -> tuple[str, VisualTokens]:
    base = base_model(model)
    tokenizer = _tokenizer(base)
    tokens = tokenizer([features], [question.text], max_tokens=max_tokens)[0]
    budget = tokenizer.config.max_tokens if max_tokens is None else max_tokens
    if budget is not None and len(tokens) > budget:
        raise RuntimeError(f"max_tokens: got {len(tokens)} visual tokens, wanted at most {budget}")
    (text,) = host_of(base).answers(base, processor, [question.text], [tokens], max_new_tokens=8)
    return text, tokens


def _tokenizer(model: nn.Module) -> BalancedTokenizer:
    tokenizer = getattr(base_model(model), TOKENIZER, None)
    if not isinstance(tokenizer, BalancedTokenizer):
        raise ValueError(f"models: got a {type(model).__name__} without tokenizer; wrap it first")
    return tokenizer


@dataclass
class _Tally:
    right: list[list[bool]] = field(default_factory=list)
    of_kind: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    recall: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, haystack: Haystack, question: Question, text: str, tokens: VisualTokens) -> None:
        right = _words(text) == _words(question.answer)
        self.right[-1].append(right)
        self.of_kind[question.kind].append(right)
        seen = set(tokens.frame.tolist())
        asked = [haystack.needles[i] for i in question.needles]
        self.recall.append(fmean(bool(seen & set(needle.seconds)) for needle in asked))
        self.tokens.append(len(tokens))

    def row(self, method: str, frames: int, needles: int, budget: int | None) -> Row:
        accuracy, low, high = share(self.right)
        return Row(
            method=method,
            frames=frames,
            needles=needles,
            accuracy=accuracy,
            low=low,
            high=high,
            recall=fmean(self.recall),
            tokens=fmean(self.tokens),
            budget=budget,
            videos=len(self.right),
            answers=len(self.recall),
            kinds={kind: fmean(right) for kind, right in sorted(self.of_kind.items())},
        )


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def table(rows: Sequence[Row]) -> str:
    """One line a row, for people."""
    return "\n".join(_lines(rows))


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "method       frames  needles  accuracy  95 % interval   recall  tokens  budget  videos"
    for row in rows:
        budget = "none" if row.budget is None else row.budget
        yield (
            f"{row.method:<12} {row.frames:>6} {row.needles:>8} {row.accuracy:>9.3f}"
            f"  {row.low:.3f} - {row.high:.3f} {row.recall:>8.3f} {row.tokens:>7.1f}"
            f" {budget:>7} {row.videos:>7}"
        )
