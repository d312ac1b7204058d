"""Seeing: the frames of a video -> FrameFeatures, in memory that does not grow with the video.

Pass 1 looks at all frames, a chunk at a time, for the feature of each by which frames are chosen.
Patches are kept while they are few; of a longer video, pass 2 looks at the chosen frames again. A
scout, where the tokenizer has one, does pass 1 at a fraction of the tower's work.

Axes: T frames, H and W of the picture, S the tower's image size, P patches, C vision width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bvllm_adapters.config import check_count
from bvllm_adapters.features import FrameFeatures
from bvllm_adapters.fingerprint import path_stamp
from bvllm_adapters.frames import (
    Frames,
    FrameSource,
    Indices,
    Progress,
    SourceChanged,
    VideoError,
)
from bvllm_adapters.growing import GrowingRows
from bvllm_adapters.patches import LookAgain, in_chunks
from bvllm_adapters.prefetch import ahead
from bvllm_adapters.repeats import Repeats
from bvllm_adapters.trace import stage

KEEP_FRAMES = 1024
"""Patches of longer videos are not kept: to look at 32 chosen frames again costs at most 3 % of
looking at all of these, and then memory need not grow."""

Patches = Literal["auto", "keep", "again"]


@dataclass(frozen=True)
class Encoding:
    """How the frames of a video are encoded.

    Args:
        patches: of all frames: "keep" them, or look at chosen frames "again"; "auto": keep those
            of up to 1024 frames, if they fit into device_bytes + host_bytes. With a scout there
            are none to keep, and it is always "again". Whatever it says, all are kept of a stream
            without a scout, which cannot be looked at again, and where choices are soft (by
            `evaluation`, or without a selector), which mix all frames.
        device_bytes: of kept patches that stay on the device; the rest go to the CPU's memory.
        host_bytes: of kept patches there; a limit for "auto" only.
        cache_bytes: of patches of frames looked at again, kept for the next question.
        skip_similar: a frame that differs by no more than this from the last one that was looked
            at shares what was seen of that; in levels of 255, the mean over a 32 x 32 thumbnail.
            None: all are looked at. Changes results.
        chunk_size: frames that are looked at at a time.
        prefetch: chunks decoded ahead of the tower, in another thread; 0: in the same.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was wanted.
    """

    patches: Patches = "auto"
    device_bytes: int = 2**30
    host_bytes: int = 2**32
    cache_bytes: int = 2**28
    skip_similar: float | None = None
    chunk_size: int = 16
    prefetch: int = 2

    def __post_init__(self) -> None:
        if self.patches not in get_args(Patches):
            raise ValueError(f"patches: got {self.patches!r}, wanted one of {get_args(Patches)}")
        for name in ("device_bytes", "host_bytes", "cache_bytes", "prefetch"):
            check_count(name, getattr(self, name), least=0)
        check_count("chunk_size", self.chunk_size)
        if self.skip_similar is not None and not self.skip_similar >= 0:
            raise ValueError(f"skip_similar: got {self.skip_similar}, wanted a number >= 0 or None")


def needs_all_patches(tokenizer: Any) -> bool:
    """Whether a BalancedTokenizer mixes patches of all frames, as soft choices do."""
    if tokenizer.frame_selector is None:
        return True
    soft = tokenizer.training or tokenizer.config.evaluation != "hard"
    return soft and tokenizer.config.selection_support is None


def encode_pixels(
    look: Callable[[Tensor], tuple[Tensor, Tensor]],
    pixels: Tensor,
    seconds: Tensor | None,
    tokenizer: Any,
    *,
    chunk_size: int = 16,
) -> FrameFeatures:
    """Features of frames that are pixels already, as the forward() of a model gets them.

    Args:
        look: (k, 3, S, S) pixels -> (k, C) frame features, (k, P, C) patches.
        pixels: (T, 3, S, S). seconds: (T,) their times; None: one a second.
        tokenizer: the BalancedTokenizer that the features are for.
    """
    scout = tokenizer.scout
    # In training the second look is what a limited support of choices is for.
    few = len(pixels) <= KEEP_FRAMES and not tokenizer.training
    keep = needs_all_patches(tokenizer) or (scout is None and few)
    cls, kept = [], []
    for chunk in pixels.split(chunk_size):
        if scout is not None:
            cls.append(scout(chunk, look).clone())
        if scout is None or keep:
            feature, patches = look(chunk)
            if scout is None:
                cls.append(feature.clone())  # it may be a view, which holds all it is of
            if keep:
                kept.append(patches)

    def look_again(indices: Tensor) -> Tensor:
        chosen = pixels[indices.to(pixels.device)]
        return torch.cat([look(chunk)[1] for chunk in chosen.split(chunk_size)])

    return FrameFeatures(
        torch.cat(cls),
        torch.cat(kept) if keep else look_again,
        seconds,  # type: ignore[arg-type]
    )


class Sight:
    """How one model sees: frames to pixels, pixels to features; each step booked in the ledger.

    Args:
        host, model, processor: see `bvllm_adapters.hosts.Host`; the model has its tokenizer.
    """

    def __init__(self, host: Any, model: Any, processor: Any) -> None:
        self.host, self.model, self.processor = host, model, processor
        self.tower_passes = 0

    @property
    def tokenizer(self) -> Any:
        return self.model.balanced_tokenizer

    @property
    def scout(self) -> Any:
        return self.tokenizer.scout

    def pixels(self, frames: Sequence[Frames], *, is_image: bool = False) -> Tensor:
        """(H, W, 3) uint8 frames of one size -> (k, 3, S, S) pixels of the tower."""
        with stage("preprocess", on_device=False):
            pixels: Tensor = self.host.pixels(self.processor, np.stack(frames), is_image=is_image)
            return pixels

    @torch.no_grad()
    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(k, 3, S, S) -> (k, C) frame features, (k, P, C) patches: the whole tower."""
        with stage("tower"):
            self.tower_passes += len(pixels)
            feature, patches = self.host.look(self.model, pixels)
            return feature, patches

    @torch.no_grad()
    def glance(self, pixels: Tensor) -> Tensor:
        """(k, 3, S, S) -> (k, C') features that frames are chosen by: the scout."""
        with stage("scout"):
            feature: Tensor = self.scout(pixels, partial(self.host.look, self.model))
            return feature


class EncodedVideo:
    """What has been seen of one video so far: of a source, or of frames that are pushed.

    Chunks are cut at the same frames however these come, so that a video pushed frame by frame
    gives the same bits as the whole of it at once.
    """

    def __init__(self, sight: Sight, options: Encoding) -> None:
        self.sight, self.options = sight, options
        self.source: FrameSource | None = None
        self.path: Path | None = None  # of the source, unless that is in memory
        self._stamp: list[tuple[str, int, int]] | None = None  # of what is there
        self.shape: tuple[int, ...] | None = None  # of frames that are pushed
        self._begin()

    def _begin(self) -> None:
        self.seconds: list[float] = []
        self.repeats = Repeats(self.options.skip_similar)
        self._cls = GrowingRows(0 if self.source is None else len(self.source))  # (n, C)
        self._kept: list[Tensor] = []  # (k, P, C) of each chunk, if patches are kept
        self._kept_bytes = 0
        self._pending: list[Frames] = []  # pushed, not a whole chunk yet
        self._pushed: list[Frames] = []  # for the tower to look at what a scout has chosen
        self._features: FrameFeatures | None = None
        self._again = LookAgain(
            self._read_again, lambda pixels: self.sight.look(pixels)[1], self.options.cache_bytes
        )

    def __len__(self) -> int:
        return len(self.seconds)

    def fill(
        self, source: FrameSource, path: Path | None = None, progress: Progress | None = None
    ) -> None:
        """See all of a source, decoding ahead of the tower.

        Args:
            path: of the source, unless that is in memory.
            progress: called with (frames decoded, frames of the source), in another thread.
        """
        self.path, self._stamp = path, path_stamp(path)
        depth = 0 if len(source) == 1 else self.options.prefetch
        while True:
            self.source = source
            self._begin()
            self.seconds = source.seconds.tolist()
            chunks = self._read_chunks(source, progress)
            try:
                with ahead(chunks, depth) if depth else nullcontext(chunks) as ready:
                    for pixels in ready:
                        self._add(*self._see(pixels))
                return
            except SourceChanged as change:  # it is damaged, and only decoding showed where
                source = change.source

    def push(self, frames: Iterable[Frames], seconds: Iterable[float]) -> None:
        """See more frames of a video that cannot be read again.

        All patches are kept or, where a scout will choose, the frames. Whatever is raised, nothing
        has been pushed then.
        """
        self._features = None
        growing: list[list[Any]] = [self.seconds, self.repeats.rows, self._kept, self._pushed]
        lengths = [len(part) for part in growing]
        others = self.shape, self.repeats.last, self._kept_bytes, [*self._pending]
        rows = len(self._cls)
        try:
            for frame, second in zip(frames, seconds, strict=True):
                self.seconds.append(second)
                self.shape = frame.shape
                if not self.repeats.is_new(frame):
                    continue
                self._pending.append(frame)
                if self.sight.scout is not None:
                    self._pushed.append(frame)
                if len(self._pending) == self.options.chunk_size:
                    self._add(*self._see(self.sight.pixels(self._pending)))
                    self._pending = []
        except BaseException:
            for part, length in zip(growing, lengths, strict=True):
                del part[length:]
            self._cls.cut(rows)
            self.shape, self.repeats.last, self._kept_bytes, self._pending = others
            raise

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on from here, but for a source."""
        cls, kept = self._seen()
        state = {
            "cls": cls,
            "rows": torch.tensor(self.repeats.rows),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }
        return state | ({"patches": torch.cat([part.cpu() for part in kept])} if kept else {})

    def restore(
        self, state: Mapping[str, Tensor], source: FrameSource, device: Any, path: Path | None
    ) -> None:
        """Go on from `state()`; `source` is read where patches were not kept."""
        self.path, self._stamp = path, path_stamp(path)
        self.source = source
        self._begin()
        self.seconds = state["seconds"].tolist()
        self.repeats.rows = state["rows"].tolist()
        self._cls.append(state["cls"].to(device))
        if "patches" in state:
            for chunk in state["patches"].split(self.options.chunk_size):
                self._keep(chunk.to(device))

    @property
    def features(self) -> FrameFeatures:
        """Of all frames so far, patches as a function of frame indices."""
        if self._features is None:
            # Not as inference tensors, even while a question is asked: none can be trained on.
            with torch.inference_mode(False), torch.no_grad():
                self._features = self._make_features()
        return self._features

    def _make_features(self) -> FrameFeatures:
        cls, kept = self._seen()
        rows = torch.tensor(self.repeats.rows, device=cls.device)

        def patches(indices: Tensor) -> Tensor:
            """Of the frames that stand for those asked for."""
            wanted, back = rows[indices.to(rows.device)].unique(return_inverse=True)
            frames = wanted.tolist()
            found = in_chunks(kept, frames, cls.device) if kept else self._again(frames)
            return found[back]

        return FrameFeatures(
            cls if len(cls) == len(rows) else cls[rows],
            patches,
            torch.tensor(self.seconds, dtype=torch.float64),
        )

    def _seen(self) -> tuple[Tensor, list[Tensor]]:
        """(n, C) features, and the patches of each chunk that are kept."""
        if not self._pending:
            return self._cls.tensor, self._kept
        # Looked at for now, and once more when the chunk is whole.
        cls, patches = self._see(self.sight.pixels(self._pending))
        if len(self._cls):
            cls = torch.cat([self._cls.tensor, cls])
        return cls, self._kept if patches is None else [*self._kept, patches]

    def _see(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(k, C) features of a chunk, and (k, P, C) patches if they are kept."""
        if self.sight.scout is None:
            cls, patches = self.sight.look(pixels)
            return cls, patches if self._keeps(patches[0].nbytes) else None
        seen_by_tower = needs_all_patches(self.sight.tokenizer)
        return self.sight.glance(pixels), self.sight.look(pixels)[1] if seen_by_tower else None

    def _add(self, cls: Tensor, patches: Tensor | None) -> None:
        self._cls.append(cls)
        if patches is not None:
            self._keep(patches)

    def _keep(self, patches: Tensor) -> None:
        self._kept_bytes += patches.nbytes
        on_device = self._kept_bytes <= self.options.device_bytes
        self._kept.append(patches if on_device else patches.cpu())

    def _keeps(self, frame_bytes: int) -> bool:
        """Whether patches are kept; the same for all chunks."""
        how = self.options.patches
        if self.source is None or needs_all_patches(self.sight.tokenizer):
            return True
        room = self.options.device_bytes + self.options.host_bytes
        fits = len(self) <= KEEP_FRAMES and len(self) * frame_bytes <= room
        return how == "keep" or (how == "auto" and fits)

    def check_source(self) -> None:
        """VideoError for a file or folder that is not what it was when it was seen."""
        if self.source is not None and path_stamp(self.path) != self._stamp:
            raise VideoError(_changed(self.source))

    def _read_chunks(self, source: FrameSource, progress: Progress | None) -> Iterator[Tensor]:
        new: list[Frames] = []
        for done, frame in enumerate(_decoded(source, np.arange(len(source))), start=1):
            if self.repeats.is_new(frame):
                new.append(frame)
            if progress is not None:
                progress(done, len(source))
            if new and (len(new) == self.options.chunk_size or done == len(source)):
                yield self.sight.pixels(new, is_image=source.is_image)
                new = []

    def _read_again(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """(1, 3, S, S) pixels of frames that were looked at before."""
        if self.source is None:
            for row in rows:
                yield self.sight.pixels([self._pushed[row]])
            return
        self.check_source()
        first = np.searchsorted(self.repeats.rows, rows)  # rows never decrease
        try:
            for frame in _decoded(self.source, first):
                yield self.sight.pixels([frame], is_image=self.source.is_image)
        except SourceChanged as change:
            raise VideoError(_changed(self.source)) from change


def _decoded(source: FrameSource, positions: Indices) -> Iterator[Frames]:
    """The frames at these positions, the time that each takes booked as decoding."""
    frames = source.read(positions)
    while True:
        with stage("decode", on_device=False):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _changed(source: FrameSource) -> str:
    return f"{source.source}: has changed, or gone, since it was seen"
