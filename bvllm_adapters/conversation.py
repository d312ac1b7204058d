"""Asking a model about videos: each is seen once and asked any number of times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from bvllm_adapters.checks import check_count
from bvllm_adapters.hosts.adapter import tokenizer_of
from bvllm_adapters.ledger import answering, ledger, stage
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.seeing.saved_video import Origin, load_features, path_of
from bvllm_adapters.seeing.seen_by import identity
from bvllm_adapters.seeing.seen_video import SeenVideo
from bvllm_adapters.trace import Trace
from bvllm_adapters.video.frames import Progress
from bvllm_adapters.video.read import source_of
from bvllm_adapters.video.sampling import Sampling


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it saw."""

    text: str
    trace: Trace

    def __str__(self) -> str:
        return self.text


class OpenVideo(SeenVideo):
    """A video, image or stream as a model has seen it, to be asked; `open_video` makes it.

    Args:
        model, processor, encoding: see `open_video`.
        fps: of frames that are pushed without times.
    """

    @overload
    def ask(self, question: str, **settings: Any) -> Answer: ...
    @overload
    def ask(self, question: Sequence[str], **settings: Any) -> list[Answer]: ...
    @torch.inference_mode()
    def ask(self, question: str | Sequence[str], **settings: Any) -> Answer | list[Answer]:
        """Ask about what was seen so far: the video is not encoded again, only frames that no
        question has chosen before may be looked at once more, see `Encoding`.

        Args:
            question: may be empty; several are answered as one batch, in one list.
            settings: max_tokens, max_new_tokens and those of generate(); see `bvllm.ask`.
        """
        questions = [question] if isinstance(question, str) else list(question)
        with ledger() as seconds:
            answers = _answers([self] * len(questions), questions, seconds, **settings)
        return answers[0] if isinstance(question, str) else answers


@torch.no_grad()
def open_video(
    model: nn.Module,
    video: Any = None,
    *,
    processor: Any = None,
    encoding: Encoding | None = None,
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    progress: Progress | None = None,
) -> OpenVideo:
    """Let a wrapped or native model see a video or image, to ask it any number of questions.

    Args:
        video: whatever `read_video` reads, or a `Video` that it has read; None: a stream, whose
            frames are pushed as they come.
        processor: tokenizer and image processor of the host; None: those beside the checkpoint
            that the model was loaded from.
        encoding: how frames are encoded; None: `Encoding()`.
        fps, start, end, max_frames: see `read_video`.
        progress: called with (frames decoded, frames to decode), maybe in another thread.

    Raises:
        VideoError: for a video that cannot be read. ValueError: for a model without tokenizer.
    """
    stream_fps = 1.0 if fps is None or video is not None else fps
    opened = OpenVideo(model, processor, encoding, stream_fps)
    if video is not None:
        sampling = Sampling(fps, start, end, max_frames)
        with stage("decode", on_device=False):  # the packets, for when each frame is shown
            path = path_of(video)
            source = source_of(video if path is None else path, sampling)
        opened.origin = Origin(sampling)
        opened.encoded.fill(source, path, progress)
    return opened


@torch.no_grad()
def load_video(
    model: nn.Module,
    file: str | Path,
    video: Any = None,
    *,
    processor: Any = None,
    encoding: Encoding | None = None,
) -> OpenVideo:
    """What `OpenVideo.save` wrote, to be asked by the same model.

    Args:
        video: where the video is now, if it has moved. Where patches were kept it is not needed;
            if it is given, it is compared all the same.
        model, processor, encoding: see `open_video`.

    Raises:
        CheckpointError: for another kind of file, a damaged one, or the features of another host,
            tower, scout or processor. ValueError: for another video, or one that is needed and
            not there.
    """
    opened = OpenVideo(model, processor, encoding, 1.0)
    seen_by = identity(opened.host, opened.model, opened.processor)
    opened.origin = load_features(file, opened.encoded, seen_by, video)
    return opened


@torch.inference_mode()
def ask(
    model: nn.Module,
    video: Any,
    question: str,
    *,
    max_tokens: int | None = None,
    max_new_tokens: int = 128,
    processor: Any = None,
    encoding: Encoding | None = None,
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    progress: Progress | None = None,
    **generate: Any,
) -> Answer:
    """Ask a wrapped or native model one question about a video or image.

    Args:
        question: may be empty.
        max_tokens: budget in visual tokens, in place of the tokenizer's own.
        max_new_tokens: length of the answer at most; this and `generate` go to the model's
            generate().
        video, processor, encoding, fps, start, end, max_frames, progress: see `open_video`.

    Raises:
        VideoError: for a video that cannot be read. ValueError: for a model without tokenizer.
    """
    with ledger() as seconds:
        opened = open_video(
            model,
            video,
            processor=processor,
            encoding=encoding,
            fps=fps,
            start=start,
            end=end,
            max_frames=max_frames,
            progress=progress,
        )
        (answer,) = _answers(
            [opened], [question], seconds, max_tokens=max_tokens, max_new_tokens=max_new_tokens,
            **generate,
        )  # fmt: skip
    return answer


@torch.inference_mode()
def ask_batch(
    items: Iterable[tuple[OpenVideo, str]], *, batch_size: int = 8, **settings: Any
) -> list[Answer]:
    """Questions about several videos and images of one model, several in one call of it.

    Args:
        items: an open video with one question each; a video may come any number of times.
        batch_size: prompts that the language model sees at a time.
        settings: max_tokens, max_new_tokens and those of generate(), see `ask`.

    Returns:
        An answer for each item, in their order. `trace.seconds` is that of its whole batch.
    """
    check_count("batch_size", batch_size)
    pairs = list(items)
    for video, _ in pairs:
        if not isinstance(video, OpenVideo):
            raise TypeError(f"items: got {video!r}, wanted videos that open_video has opened")
    if len({id(video.model) for video, _ in pairs}) > 1:
        raise ValueError("items: got videos of several models, wanted those of one")
    answers = []
    for begin in range(0, len(pairs), batch_size):
        videos, questions = zip(*pairs[begin : begin + batch_size], strict=True)
        with ledger() as seconds:
            answers += _answers(videos, questions, seconds, **settings)
    return answers


def _answers(
    videos: Sequence[OpenVideo],
    questions: Sequence[str],
    seconds: dict[str, float],
    *,
    max_tokens: int | None = None,
    max_new_tokens: int = 128,
    **generate: Any,
) -> list[Answer]:
    if not videos:
        return []
    first = videos[0]
    features = [video.features for video in videos]
    tokenizer = tokenizer_of(first.model)
    tokens = tokenizer(features, questions, max_tokens=max_tokens)
    with answering() as at_each_token:
        generate["logits_processor"] = [*(generate.get("logits_processor") or ()), *at_each_token]
        texts = first.host.answers(
            first.model, first.processor, questions, tokens,
            max_new_tokens=max_new_tokens, **generate,
        )  # fmt: skip
    budget = tokenizer.config.max_tokens if max_tokens is None else max_tokens
    return [
        Answer(
            text,
            Trace.of(visual, max_tokens=budget, seconds=seconds, tower_passes=video.tower_passes),
        )
        for text, visual, video in zip(texts, tokens, videos, strict=True)
    ]
