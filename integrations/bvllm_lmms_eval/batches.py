"""The order in which requests are answered: those of a video together, so that it is seen once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from bvllm_lmms_eval.asked import Asked
from bvllm_lmms_eval.settings import Settings


@dataclass(frozen=True)
class Request:
    """One request of lmms-eval.

    Args:
        resolve: makes its prompt, with pictures that are loaded for it.
        key: the same for requests that show the same; see `by_video`.
        settings: how it is answered. continuation: the answer whose likelihood is asked for.
    """

    resolve: Callable[[], Asked]
    key: Hashable
    settings: Settings = field(default_factory=Settings)
    continuation: str = ""


def by_video(requests: Sequence[Request]) -> list[Request]:
    """Requests of documents, known by the video that they show.

    Those that show pictures stay known by their document: to keep the pictures of a whole task, or
    to compare them, costs more than to see one twice. That a task shows some is learnt from its
    first; the others are loaded at their turn alone.

    Args:
        requests: each with a key of (task, split, number).
    """
    of_pictures: set[tuple[Any, ...]] = set()
    made = []
    for request in requests:
        task, split, _ = cast(tuple[Any, ...], request.key)
        if (task, split) not in of_pictures:
            visuals = request.resolve().visuals
            if any(visual.is_picture for visual in visuals):
                of_pictures.add((task, split))
            elif visuals:
                request = replace(request, key=visuals)
        made.append(request)
    return made


def batches(requests: Sequence[Request], size: int) -> Iterator[list[int]]:
    """Places of up to `size` requests of equal settings at a time, those of a video together."""
    videos: dict[Hashable, int] = {}
    settings: dict[str, int] = {}
    rank = []
    for request in requests:
        video = videos.setdefault(request.key, len(videos))
        rank.append((video, settings.setdefault(request.settings.key, len(settings))))
    batch: list[int] = []
    for place in sorted(range(len(requests)), key=rank.__getitem__):
        if batch and (len(batch) == size or rank[batch[0]][1] != rank[place][1]):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
