"""What a model has seen of a video, saved and loaded: it knows its model, and its video again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bvllm_adapters.seeing.encoded_video import EncodedVideo
from bvllm_adapters.seeing.features_file import read, write
from bvllm_adapters.seeing.fingerprint import frames_fingerprint, path_fingerprint
from bvllm_adapters.seeing.seen_by import differences
from bvllm_adapters.video import media
from bvllm_adapters.video.frames import Frames, FrameSource, Indices, SourceChanged, VideoError
from bvllm_adapters.video.groups_of_frames import in_groups
from bvllm_adapters.video.read import source_of
from bvllm_adapters.video.sampling import Sampling
from bvllm_adapters.weights.checkpoint import CheckpointError
from bvllm_adapters.weights.device import device_of


@dataclass(frozen=True)
class Origin:
    """Where a video comes from.

    Args:
        reading: which of its frames were read.
        path, fingerprint: where it was, and by what it is known; None, None: not known (yet).
    """

    reading: Sampling = field(default_factory=Sampling)
    path: str | None = None
    fingerprint: str | None = None


def save_features(
    file: str | Path, encoded: EncodedVideo, seen_by: Mapping[str, Any], origin: Origin
) -> None:
    """What has been seen, and all that `load_features` wants to know about it.

    Args:
        seen_by: the `identity` of the model.
        origin: of the video, if it was loaded; else only how it was read.

    Raises:
        ValueError: a scout saw a stream, which cannot be read again.
        VideoError: the video is needed, and is not what it was when it was seen.
    """
    source = encoded.source
    if source is None and encoded.sight.scout is not None:
        raise ValueError("video: got a stream seen by a scout, wanted one that can be read")
    state = encoded.state()
    seconds = state["seconds"].tolist()
    origin = _known(encoded, origin, needed="patches" not in state)
    reading = {  # as JSON takes them, and not NumPy's numbers
        name: value if value is None or isinstance(value, int) else float(value)
        for name, value in asdict(origin.reading).items()
    }
    about = {
        **asdict(origin),
        "reading": reading,
        **seen_by,
        "source": "stream" if source is None else source.source,
        "is_image": source is not None and source.is_image,
        "frame_count": len(seconds) if source is None else source.frame_count,
        "duration": seconds[-1] if source is None else source.duration,
    }
    write(file, state, about)


def _known(encoded: EncodedVideo, origin: Origin, *, needed: bool) -> Origin:
    """With path and fingerprint; without, of a stream and of what is there no more."""
    try:
        encoded.check_source(whole=True)
    except VideoError:
        if needed:
            raise
        return Origin(origin.reading)
    source, path = encoded.source, encoded.path
    if origin.fingerprint is not None or source is None:
        return origin
    return replace(
        origin,
        path=None if path is None else str(path),
        fingerprint=_fingerprint(source, path),
    )


def load_features(
    file: str | Path, encoded: EncodedVideo, seen_by: Mapping[str, Any], video: Any
) -> Origin:
    """Into `encoded`, from what `save_features` wrote.

    Args:
        seen_by: the `identity` of the model. video: where it is now; None: where it was.

    Raises:
        CheckpointError, ValueError: see `bvllm_adapters.conversation.load_video`.
    """
    found = read(file)
    state, about = found.state, found.about
    for name, got, wanted in differences(about, seen_by):
        raise CheckpointError(f"file: got {file} of {name} {got}, wanted {name} {wanted}")
    found.check_whole()
    origin = Origin(Sampling(**about["reading"]), about["path"], about["fingerprint"])
    source, path = _unread(state, about), None
    if video is not None or "patches" not in state:
        where = about["path"] if video is None else video
        if where is None:
            raise ValueError(
                f"video: got None, wanted {about['source']}, which was in memory: {file} does not "
                "hold its patches"
            )
        groups = encoded.sight.frames_per_look
        source, path = _found(where, state["seconds"].tolist(), about, groups), path_of(where)
        origin = replace(origin, path=None if path is None else str(path))
    model: Any = encoded.sight.model
    encoded.restore(state, source, device_of(model.get_input_embeddings()), path)
    return origin


def _unread(state: Mapping[str, Tensor], about: Mapping[str, Any]) -> FrameSource:
    """The source of features that hold all patches; it is not looked for."""

    def read(positions: Indices) -> Iterator[Frames]:
        raise AssertionError("patches are kept, so no frame is read again")

    return FrameSource(
        state["seconds"].numpy(), about["source"], about["is_image"], about["frame_count"],
        about["duration"], read,
    )  # fmt: skip


def _found(
    where: Any, seconds: list[float], about: Mapping[str, Any], frames_per_look: int
) -> FrameSource:
    """The source that was seen, at `where` it is now, in the groups that it was seen in.

    Raises:
        ValueError: for another one.
    """
    path = path_of(where)
    read = source_of(readable(where), Sampling(**about["reading"]))
    source = in_groups(read, frames_per_look)
    if source.seconds.tolist() != seconds:  # a damaged file tells its times only when decoded
        try:
            for _ in source.read(np.arange(len(source))):
                pass
        except SourceChanged as change:
            source = change.source
    kind = (about["fingerprint"] or "stream").split()[0]
    found = _fingerprint(source, path if kind == "path" else None)
    if source.seconds.tolist() != seconds or found != about["fingerprint"]:
        raise ValueError(f"video: got {source.source}, wanted {about['source']} as it was seen")
    return source


def path_of(video: Any) -> Path | None:
    """Absolute, as a video may be looked at again from another folder; None: it is in memory, or
    behind a URL."""
    path = media.path_of(video)
    return None if path is None else path.absolute()


def readable(video: Any) -> Any:
    """What is to be read: the absolute path in place of another, and all else as it was given."""
    is_url = isinstance(video, str) and "://" in video
    return video if is_url or not isinstance(video, str | PathLike) else path_of(video)


def _fingerprint(source: FrameSource, path: Path | None) -> str:
    """Of what is at `path` or, without one, of the frames themselves."""
    if path is None:
        return f"frames {frames_fingerprint(source)}"
    return f"path {path_fingerprint(path)}"
