"""The chosen frames of a video, for a model that cannot be opened: an API, a server.

Frames are read twice: all of them a few at a time, of which a feature each is kept, then those that
were chosen. Axes: T frames read, K chosen, H and W of the upright picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bvllm_adapters.checks import check_count
from bvllm_adapters.features import Selection
from bvllm_adapters.selectors.choosing import check_query
from bvllm_adapters.selectors.looking import look, mark
from bvllm_adapters.selectors.names import named_selector
from bvllm_adapters.trace import FrameTrace, Trace
from bvllm_adapters.video.frames import (
    FrameSource,
    Indices,
    Progress,
    SourceChanged,
    Times,
    Video,
    VideoError,
)
from bvllm_adapters.video.pictures import small_jpeg
from bvllm_adapters.video.read import Source, open_source


@dataclass(frozen=True, eq=False)
class ChosenFrames(Video):
    """The frames chosen of one source, with their times, as `read_video` gives all.

    Args:
        index: (K,) int64 which of the T frames read each is.
        scores: (K,) float32 what each was chosen by, from 0 to 1; None where nothing was looked at.
        selection: of all T frames: `selection.scores` has the others' too, and `selection.note`
            what is to be known of how the question was read.
        times: (T,) seconds of all frames. question: what they were chosen for. selector: by what.
    """

    index: Indices
    scores: npt.NDArray[np.float32] | None
    selection: Selection
    times: Times | None = field(default=None, kw_only=True)
    question: str = field(default="", kw_only=True)
    selector: str | None = field(default=None, kw_only=True)

    @property
    def trace(self) -> Trace:
        """The choice as plain data, to be looked at: `chosen.trace.save("chosen.html")`."""
        pairs = zip(self.index.tolist(), self.seconds.tolist(), strict=True)
        scores = self.selection.scores
        frames = tuple(
            FrameTrace(
                frame=frame,
                second=second,
                weights={frame: 1.0},
                choices=1.0,
                tokens=0,
                score=None if scores is None else float(scores[frame]),
            )
            for frame, second in pairs
        )
        own = dict(zip(self.index.tolist(), self.frames, strict=True))
        return Trace(
            frames_decoded=self.selection.num_frames,
            frames=frames,
            num_tokens=0,
            max_tokens=None,
            seconds={},
            selector=self.selector,
            note=self.selection.note,
            question=self.question or None,
            source=self.source,
            times=self.times,
            scores=None if scores is None else scores.cpu().numpy(),
            pictures_later=lambda wanted: {i: small_jpeg(own[i]) for i in wanted},
        )

    def _repr_html_(self) -> str:
        """In a notebook."""
        return self.trace._repr_html_()


def select_frames(
    video: Source,
    question: str = "",
    *,
    num_frames: int = 32,
    selector: str | nn.Module = "coverage",
    fps: float | None = 1.0,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    query: str | None = None,
    progress: Progress | None = None,
) -> ChosenFrames:
    """Choose frames of a video by what they show, without the model that will see them.

    Of an image it is that image. No more than the chosen frames are held, beside a few that are
    being looked at and a feature of each of the others.

    Args:
        video, fps, start, end, max_frames: what is chosen from, see `read_video`.
        question: for a `RelevanceSelector`; may be empty.
        num_frames: K, how many frames are chosen, if there are as many.
        selector: "coverage" or another name of `named_selector`, or a selector that sees frames
            itself, such as `RelevanceSelector.from_pretrained(...)`, on whichever device it is.
        query: what a scout reads in place of the question, as it is.
        progress: called with (frames read, frames to read), in another thread: all, then those
            that were chosen.

    Raises:
        VideoError: the source cannot be read, or changed meanwhile. ValueError, TypeError: an
            argument is wrong; names it, what came and what was wanted.

    Warns:
        VideoWarning: the file is damaged.
    """
    check_count("num_frames", num_frames)
    if not isinstance(question, str):
        raise TypeError(f"question: got {type(question).__name__}, wanted a string")
    chooser = without_model(selector)
    check_query(chooser, query)
    source = open_source(video, fps=fps, start=start, end=end, max_frames=max_frames)
    looked = LookedAt(source, chooser, progress, num_frames)
    return looked.choose(question, num_frames, query=query, progress=progress)


def without_model(given: str | nn.Module) -> Any:
    """A selector that can do without a model: the one of this name, or the one given.

    Raises:
        TypeError, ValueError: it is none, or needs the features of a model.
    """
    chooser: Any = named_selector(given).eval() if isinstance(given, str) else given
    if not isinstance(chooser, nn.Module) or not hasattr(chooser, "sees"):
        raise TypeError(
            f"selector: got a {type(given).__name__}, wanted a name or a selector that sees frames"
        )
    if not chooser.sees:
        raise ValueError(
            "selector: got one that chooses by the features of a model, wanted one that sees "
            "frames itself, as no model is here"
        )
    return chooser


class LookedAt:
    """A video all of whose frames a selector has looked at, to choose from for any questions.

    Args:
        selector: see `without_model`.
        progress: called with (frames read, frames to read), in another thread.
        num_frames: how many will be chosen, which `progress` counts as well.
    """

    def __init__(
        self,
        source: FrameSource,
        selector: Any,
        progress: Progress | None = None,
        num_frames: int = 0,
    ) -> None:
        self.source, self.selector = source, selector
        self._marks: list[int] = []  # of each frame that was looked at, to know it again by
        while True:
            try:
                self._cls = self._look(progress, num_frames)
                return
            except SourceChanged as change:  # it is damaged, and only decoding showed where
                self.source = change.source

    @property
    def _blind(self) -> bool:
        """Whether there is nothing to look at, or nothing to choose from."""
        return len(self.source) == 1 or getattr(self.selector, "blind", False)

    def _look(self, progress: Progress | None, num_frames: int) -> Tensor:
        """(T, C') what is chosen by, of all frames."""
        count = len(self.source)
        if self._blind:
            return torch.zeros(count, 1)
        steps = min(num_frames, count) + count
        self._marks = []
        return look(
            self.source, self.selector, self._marks, lambda done: progress and progress(done, steps)
        )

    def choose(
        self,
        question: str,
        num_frames: int,
        *,
        query: str | None = None,
        progress: Progress | None = None,
    ) -> ChosenFrames:
        """Args, Raises: see `select_frames`."""
        while True:
            try:
                return self._chosen(question, num_frames, query, progress)
            except SourceChanged as change:  # as no frame was looked at before
                self.source = change.source
                self._cls = self._look(None, num_frames)

    def _chosen(
        self, question: str, num_frames: int, query: str | None, progress: Progress | None
    ) -> ChosenFrames:
        source, cls, marks = self.source, self._cls, self._marks
        count = len(source)
        steps = min(num_frames, count) + (0 if self._blind else count)
        if count == 1:  # an image, or a video of one frame, has nothing to choose from
            selection = Selection.everything(1)
        else:
            how = {} if query is None else {"query": query}
            seconds = torch.from_numpy(source.seconds)
            selection = self.selector(cls, question, seconds=seconds, num_frames=num_frames, **how)
        index = selection.frame.cpu().numpy()
        frames = np.empty(0, np.uint8)
        for i, frame in enumerate(source.read(index)):
            if marks and mark(frame) != marks[index[i]]:
                raise VideoError(f"{source.source}: has changed since its frames were looked at")
            if i == 0:
                frames = np.empty((len(index), *frame.shape), np.uint8)
            frames[i] = frame
            if progress is not None:
                progress(steps - len(index) + i + 1, steps)
        scores = selection.scores
        return ChosenFrames(
            frames=frames,
            seconds=source.seconds[index],
            source=source.source,
            is_image=source.is_image,
            frame_count=source.frame_count,
            duration=source.duration,
            index=index,
            scores=None if scores is None else scores.cpu().numpy()[index],
            selection=selection,
            times=source.seconds,
            question=question,
            selector=getattr(self.selector, "name", None),
        )
