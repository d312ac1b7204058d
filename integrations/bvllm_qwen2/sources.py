"""What stands for the placeholders, in whatever form it comes -> videos, sampled as asked.

Axes: T frames, C = 3 channels, H and W of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bvllm_adapters.checks import check_count
from bvllm_adapters.video.read import Video, read_video
from bvllm_adapters.video.sampling import Sampling
from bvllm_qwen2.chat import VIDEO_TOKEN


@dataclass(frozen=True)
class FramesWanted:
    """Which frames of each video, by transformers' names.

    Args:
        fps: a second; "usual": 1, where nothing else is said; None: every frame.
        num_frames: as many at most, evenly from first to last, instead.
        do_sample_frames: False: every frame. True: as the others say.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """

    fps: float | str | None = "usual"
    num_frames: int | None = None
    do_sample_frames: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.fps, str) and self.fps != "usual":
            raise TypeError(f"fps: got {self.fps!r}, wanted a number or None")
        rate = self.fps != "usual" and self.fps is not None
        if self.num_frames is not None:
            check_count("num_frames", self.num_frames)
            if rate:
                raise ValueError(
                    f"num_frames: got {self.num_frames} beside fps={self.fps}, wanted one of them"
                )
        if self.do_sample_frames is False and (rate or self.num_frames is not None):
            name, value = ("fps", self.fps) if rate else ("num_frames", self.num_frames)
            raise ValueError(
                f"do_sample_frames: got False beside {name}={value}, wanted one of them"
            )
        self.sampling  # noqa: B018  # checks the numbers

    @property
    def is_usual(self) -> bool:
        """Whether frames that came as frames are all wanted."""
        return self.fps == "usual" and self.num_frames is None

    @property
    def sampling(self) -> Sampling:
        every = self.do_sample_frames is False or self.num_frames is not None
        fps: Any = None if every else 1.0 if self.fps == "usual" else self.fps
        return Sampling(fps, max_frames=self.num_frames)

    def read(self, source: Any, metadata: Any = None) -> Video:
        """The frames wanted of one video.

        Args:
            source: what `read_video` reads, or a `Video`; frames also as uint8 tensors, with the
                channels first or last, and as lists of single ones.
            metadata: of frames that came as frames: a mapping or an object of transformers with
                `fps`, and `frames_indices` at that rate if they were chosen before. Without it
                they are taken as `fps` a second.
        """
        sampling = self.sampling
        if isinstance(source, Video):
            video = source
        elif _as_array(source) is not None or _is_frames(source):
            rate = sampling.fps if metadata is None else None
            video = read_video(_frames(source), fps=rate or 1.0)
            if metadata is None:  # at `fps` already
                sampling = replace(sampling, fps=None)
            else:
                video = replace(video, **_times(metadata, len(video.frames)))
        else:
            if metadata is not None:
                raise ValueError(
                    f"video_metadata: got some of {source!r:.80}, wanted None, as a file says "
                    "itself when its frames are shown"
                )
            return read_video(source, fps=sampling.fps, max_frames=sampling.max_frames)
        if self.is_usual and self.do_sample_frames is not True:
            return video
        chosen = sampling.pick(video.seconds, video.duration)
        return replace(video, frames=video.frames[chosen], seconds=video.seconds[chosen])


def read_image(source: Any) -> Video:
    """One image, also as a uint8 tensor or array with the channels first or last."""
    if isinstance(source, Video):
        return source
    array = _as_array(source)
    return read_video(source if array is None else array)


def in_order(name: str, given: Any, kinds: list[list[str]], kind: str) -> Iterator[Any]:
    """What stands for the placeholders of one kind, from a flat list or a list for each prompt."""
    counts = [prompt.count(kind) for prompt in kinds]
    array = _as_array(given)
    if given is None:
        given = []
    elif array is not None and array.ndim == (5 if kind == VIDEO_TOKEN else 4):
        given = list(given)
    elif is_source(given, kind):
        given = [given]
    return flat(name, given, counts, lambda source: is_source(source, kind), f"one per {kind}")


def metadata_in_order(given: Any, kinds: list[list[str]]) -> Iterator[Any]:
    """What is said of each video, None where nothing is; in the order of `in_order`."""
    counts = [prompt.count(VIDEO_TOKEN) for prompt in kinds]
    if given is None:
        given = [None] * sum(counts)
    elif not isinstance(given, list | tuple):
        given = [given]
    single = lambda one: not isinstance(one, list | tuple)  # noqa: E731
    return flat("video_metadata", given, counts, single, "one per video")


def flat(name: str, given: Any, counts: list[int], single: Any, wanted: str) -> Iterator[Any]:
    """The same in one row, whether it came so or as a list for each prompt."""
    nested = [not single(source) for source in given]
    if any(nested):
        if not all(nested):
            raise ValueError(
                f"{name}: got single ones beside lists, wanted one flat list or a list per prompt"
            )
        got = [len(sources) for sources in given]
        if got != counts:
            raise ValueError(f"{name}: got {got} in the prompts, wanted {counts}, {wanted}")
        given = [source for sources in given for source in sources]
    if len(given) != sum(counts):
        raise ValueError(f"{name}: got {len(given)}, wanted {sum(counts)}, {wanted} in text")
    return iter(given)


def is_source(value: Any, kind: str) -> bool:
    """Whether this is one video or image, rather than a list of them."""
    if isinstance(value, list | tuple):
        return kind == VIDEO_TOKEN and _is_frames(value)
    return True


def _is_frames(value: Any) -> bool:
    """Whether this is a list of single pictures, which is one video."""
    if not isinstance(value, list | tuple) or not value:
        return False
    arrays = [_as_array(one) for one in value]
    return all(
        isinstance(one, Image.Image) or (array is not None and array.ndim == 3)
        for one, array in zip(value, arrays, strict=True)
    )


def _frames(source: Any) -> Any:
    array = _as_array(source)
    if array is not None:
        return array
    if all(isinstance(frame, Image.Image) for frame in source):
        return list(source)
    return [
        frame if isinstance(frame, Image.Image) else Image.fromarray(_as_array(frame))
        for frame in source
    ]


def _as_array(source: Any) -> Any:
    """An array or a tensor as an array whose channels come last; None for anything else.

    Raises:
        ValueError: for a tensor of another dtype than uint8.
    """
    if isinstance(source, Tensor):
        if source.dtype != torch.uint8:
            raise ValueError(f"videos, images: got a {source.dtype} tensor, wanted uint8, 0 to 255")
        source = source.cpu().numpy()
    if not isinstance(source, np.ndarray):
        return None
    if source.ndim >= 3 and source.shape[-1] != 3 and source.shape[-3] == 3:
        return np.ascontiguousarray(np.moveaxis(source, -3, -1))
    return source


def _times(metadata: Any, count: int) -> dict[str, Any]:
    """Fields of a `Video` whose frames are those at `frames_indices` of `fps` a second."""

    def said(name: str) -> Any:
        if isinstance(metadata, Mapping):
            return metadata.get(name)
        return getattr(metadata, name, None)

    fps, indices = said("fps"), said("frames_indices")
    good = isinstance(fps, int | float | np.number) and not isinstance(fps, bool)
    if not good or not 0 < float(fps) < np.inf:
        raise ValueError(f"video_metadata: got fps={fps!r}, wanted a finite number > 0")
    places = np.asarray(range(count) if indices is None else indices, dtype=np.float64)
    if places.shape != (count,) or (np.diff(places) <= 0).any() or not (places >= 0).all():
        raise ValueError(
            f"video_metadata: got frames_indices={indices!r:.80}, wanted {count} that increase, "
            "one for each frame"
        )
    seconds = places / float(fps)
    total, duration = said("total_num_frames"), said("duration")
    last = float(seconds[-1]) + 1 / float(fps)
    return {
        "seconds": seconds,
        "frame_count": max(int(total or 0), int(places[-1]) + 1),
        "duration": max(float(duration or 0.0), last),
    }
