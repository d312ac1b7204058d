"""Asking a model about videos: each is seen once and asked any number of times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from bvllm_adapters.checks import check_count
from bvllm_adapters.context import is_looking, looking
from bvllm_adapters.hosts.base import base_model, tokenizer_of
from bvllm_adapters.hosts.evaluating import evaluating
from bvllm_adapters.hosts.find import host_of
from bvllm_adapters.hosts.generation import check_asking, completed, of_prompt
from bvllm_adapters.ledger import answering, ledger, peak_memory, stage
from bvllm_adapters.question import without
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.seeing.pictures import pictured, reader_of
from bvllm_adapters.seeing.saved_video import Origin, load_features, path_of, readable
from bvllm_adapters.seeing.seen_by import identity
from bvllm_adapters.seeing.seen_video import SeenVideo
from bvllm_adapters.selectors.choosing import check_query
from bvllm_adapters.trace import Trace
from bvllm_adapters.video.frames import Progress
from bvllm_adapters.video.read import source_of
from bvllm_adapters.video.sampling import Sampling

Turns = Sequence[tuple[str, str]]
"""Earlier questions, each with its answer."""
Query = str | list[str | None] | None  # of all questions, or of each


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it saw.

    Args:
        text: its answer, or the best of several. texts: all, as many as `num_return_sequences`.
        generated: with `return_dict_in_generate=True`, or `output_scores=True` and the like, what
            generate() returned of this question: `sequences` of new ids, `scores` and what else
            was asked for, but for the cache.
    """

    text: str
    trace: Trace
    texts: tuple[str, ...] = ()
    generated: Any = field(default=None, compare=False, repr=False)

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
    def ask(
        self, question: str | Sequence[str], *, look: bool = False, **settings: Any
    ) -> Answer | list[Answer]:
        """Ask about what was seen so far: the video is not encoded again, only frames that no
        question has chosen before may be looked at once more, see `Encoding`.

        Args:
            question: may be empty; several are answered as one batch, in one list.
            look: see `bvllm.ask`.
            settings: max_tokens, query, history, system, max_new_tokens and those of generate();
                see `bvllm.ask`. Of several questions each may have a query of its own, in a list.
        """
        questions = [question] if isinstance(question, str) else list(question)
        with _booking(look) as booked:
            answers = _answers([self] * len(questions), questions, booked, **settings)
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
            source = source_of(readable(video), sampling)
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
    query: str | None = None,
    history: Turns = (),
    system: str | None = None,
    processor: Any = None,
    encoding: Encoding | None = None,
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    progress: Progress | None = None,
    look: bool = False,
    **generate: Any,
) -> Answer:
    """Ask a wrapped or native model one question about a video or image.

    It answers as in evaluation, in whatever mode it is; see `bvllm_adapters.hosts.evaluating`.

    Args:
        question: may be empty. Tags and special tokens in it are left out: it is text.
        max_tokens: budget in visual tokens, in place of the tokenizer's own.
        query: what a selector's scout reads in place of the question, best a caption of the like.
        history: (question, answer) of earlier turns, in the host's chat format. The video stands
            in the first of them; which of its frames are shown, the present question decides.
        system: what the conversation begins with, in place of the host's own words.
        generate: settings of transformers' generate(), such as `max_new_tokens` (128, unless the
            model's own generation_config says), `do_sample`, `num_return_sequences`,
            `generation_config`, `return_dict_in_generate`, `streamer` or `stopping_criteria`.
            `max_length` counts the ids of the prompt too, the video as one. Processors and
            criteria see the new ids alone. What cannot follow behind visual tokens is refused.
        look: the trace tells more, for a report: pictures of the chosen frames, where tokens looked
            and which were merged, bytes of each stage. The answer is the same.
        video, processor, encoding, fps, start, end, max_frames, progress: see `open_video`.

    Raises:
        VideoError: for a video that cannot be read. ValueError: for a model without tokenizer.
        TypeError, ValueError: for a wrong setting, by its name, before the video is read.
    """
    check_query(tokenizer_of(base_model(model)).frame_selector, query)
    check_asking(host_of(base_model(model)), [question], max_tokens, history, system, generate)
    with _booking(look) as booked:
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
            [opened], [question], booked,
            max_tokens=max_tokens, query=query, history=history, system=system, **generate,
        )  # fmt: skip
    return answer


@torch.inference_mode()
def ask_batch(
    items: Iterable[tuple[OpenVideo, str] | tuple[OpenVideo, str, Turns]],
    *,
    batch_size: int = 8,
    query: Query = None,
    look: bool = False,
    **settings: Any,
) -> list[Answer]:
    """Questions about several videos and images of one model, several in one call of it.

    Args:
        items: an open video with one question each, and its history if it has one; a video may
            come any number of times.
        batch_size: prompts that the language model sees at a time.
        query: see `ask`; one, or a list of one for each item. look: see `ask`.
        settings: max_tokens, system, max_new_tokens and those of generate(), see `ask`.

    Returns:
        An answer for each item, in their order. `trace.seconds` is that of its whole batch.
    """
    check_count("batch_size", batch_size)
    given: list[tuple[Any, ...]] = [tuple(item) for item in items]
    for video, *_ in given:
        if not isinstance(video, OpenVideo):
            raise TypeError(f"items: got {video!r}, wanted videos that open_video has opened")
    if len({id(video.model) for video, *_ in given}) > 1:
        raise ValueError("items: got videos of several models, wanted those of one")
    queries = _for_each(query, len(given))
    answers = []
    for begin in range(0, len(given), batch_size):
        here = slice(begin, begin + batch_size)
        batch = given[here]
        videos, questions = [item[0] for item in batch], [item[1] for item in batch]
        own = [item[2] if len(item) > 2 else None for item in batch]
        with _booking(look) as booked:
            answers += _answers(
                videos, questions, booked, query=queries[here], histories=own, **settings
            )
    return answers


Booked = tuple[dict[str, float], dict[str, int] | None]
"""Seconds of each stage; with a look its bytes."""


@contextmanager
def _booking(look: bool) -> Iterator[Booked]:
    """What is inside is booked and, with a look, says where its tokens come from."""
    with ledger() as seconds, peak_memory() if look else nullcontext() as peaks, looking(look):
        yield seconds, peaks


def _answers(
    videos: Sequence[OpenVideo],
    questions: Sequence[str],
    booked: Booked,
    *,
    max_tokens: int | None = None,
    query: Query = None,
    history: Turns = (),
    system: str | None = None,
    histories: Sequence[Turns | None] | None = None,
    **generate: Any,
) -> list[Answer]:
    if not videos:
        return []
    first = videos[0]
    earlier = [history if own is None else own for own in histories or [None] * len(videos)]
    for turns in earlier:
        check_asking(first.host, questions, max_tokens, turns, system, generate)
    in_prompt: dict[str, Any] = {}  # what not every host has a place for
    if any(earlier):
        in_prompt["history"] = [[(without(q), without(a)) for q, a in turns] for turns in earlier]
    if system is not None:
        in_prompt["system"] = without(system)
    questions = [without(question) for question in questions]
    tokenizer = tokenizer_of(first.model)
    queries = _for_each(query, len(videos))
    features = [video.features for video in videos]
    generate = completed(generate, getattr(first.model, "generation_config", None))
    with evaluating(first.model):
        tokens = tokenizer(features, questions, max_tokens=max_tokens, queries=queries)
        with answering() as at_each_token:
            processors = [*(generate.pop("logits_processor", None) or ()), *at_each_token]
            replies = first.host.answers(
                first.model, first.processor, questions, tokens,
                logits_processor=processors, **in_prompt, **generate,
            )  # fmt: skip
    each, output = len(replies) // len(questions), getattr(replies, "output", None)
    budget = tokenizer.config.max_tokens if max_tokens is None else max_tokens
    seconds, peaks = booked
    answers = []
    for i, (visual, video) in enumerate(zip(tokens, videos, strict=True)):
        texts = tuple(replies[i * each : (i + 1) * each])
        source = video.encoded.source
        more: dict[str, Any] = {}
        if is_looking():
            sampled = tokenizer.spatial_sampler is not None
            more = pictured(video.encoded, visual, sampled=sampled)
        trace = Trace.of(
            visual,
            max_tokens=budget,
            seconds=seconds,
            tower_passes=video.tower_passes,
            scout_passes=video.encoded.sight.scout_passes,
            selector=tokenizer.config.selector,
            question=questions[i],
            answer=texts[0],
            source=None if source is None else source.source,
            bytes=None if peaks is None else {**peaks},
            pictures_later=reader_of(video.encoded, video.origin.reading),
            **more,
        )
        generated = None if output is None else of_prompt(output, i, len(videos))
        answers.append(Answer(texts[0], trace, texts, generated))
    return answers


def _for_each(query: Query, count: int) -> list[str | None]:
    if not isinstance(query, list | tuple):
        return [query] * count
    if len(query) != count:
        raise ValueError(f"query: got {len(query)}, wanted {count}, one for each question")
    return [*query]
