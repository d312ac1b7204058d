"""What has been seen of one video: its frames' features, and patches kept or looked at again.

Axes: T frames, S the tower's image size, P patches, C vision width.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bvllm_adapters.features import FrameFeatures
from bvllm_adapters.ledger import stage
from bvllm_adapters.seeing import encoding
from bvllm_adapters.seeing.encoding import Encoding, needs_all_patches
from bvllm_adapters.seeing.fingerprint import path_stamp
from bvllm_adapters.seeing.memory import GrowingRows, LookAgain, in_chunks
from bvllm_adapters.seeing.repeats import Repeats
from bvllm_adapters.seeing.sight import Sight
from bvllm_adapters.video.frames import (
    Frames,
    FrameSource,
    Indices,
    Progress,
    SourceChanged,
    VideoError,
)
from bvllm_adapters.video.groups_of_frames import Shown, in_groups, one_group, whole_groups
from bvllm_adapters.video.prefetch import ahead


class EncodedVideo:
    """What has been seen of one video so far: of a source, or of frames that are pushed.

    Chunks are cut at the same frames however these come, so that a video pushed frame by frame
    gives the same bits as the whole of it at once. Threads that push, ask and save take turns by
    `lock`: what one of them sees is of whole pushes.
    """

    def __init__(self, sight: Sight, options: Encoding) -> None:
        self.sight, self.options = sight, options
        self.lock = RLock()
        self.source: FrameSource | None = None
        self.path: Path | None = None  # of the source, unless that is in memory
        self._stamp: list[tuple[str, int, int]] | None = None  # of the path, when it was seen
        self.shape: tuple[int, ...] | None = None  # of frames that are pushed
        self._begin()

    def _begin(self) -> None:
        self.seconds: list[float] = []
        self.repeats = Repeats(self.options.skip_similar)
        self._cls = GrowingRows(0 if self.source is None else len(self.source))  # (n, C)
        self._kept: list[Tensor] = []  # (k, P, C) of each chunk, if patches are kept
        self._kept_bytes = 0
        self._pending: list[Frames] = []  # pushed, not a whole chunk yet
        self._loose: list[Shown] = []  # pushed, not a whole group yet
        self.last_second: float | None = None  # of the last frame that was pushed
        self._pushed: list[Frames] = []  # kept for the tower, which looks at those that are chosen
        self._marks: list[int] = []  # of each frame of a source in memory, which may be changed
        self._features: FrameFeatures | None = None
        self._again = LookAgain(
            self._read_again, lambda pixels: self.sight.look(pixels)[1], self.options.cache_bytes
        )

    def __len__(self) -> int:
        """Frames, or groups that the tower takes as one, so far."""
        return len(self.seconds) + bool(self._loose)

    def fills_chunk(self, frames: int) -> bool:
        """Whether so many more that are pushed make a chunk whole, which is looked at then."""
        return len(self._pending) + frames >= self.options.chunk_size

    def fill(
        self, source: FrameSource, path: Path | None = None, progress: Progress | None = None
    ) -> None:
        """See all of a source, decoding ahead of the tower.

        Args:
            path: of the source, unless that is in memory.
            progress: called with (frames decoded, frames of the source), in another thread.
        """
        self.path, self._stamp = path, path_stamp(path)
        source = in_groups(source, self.sight.frames_per_look)
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

    def push(self, frames: Sequence[Frames], seconds: Sequence[float]) -> None:
        """See more frames of a video that cannot be read again.

        All patches are kept or, where a scout will choose, the frames. Whatever is raised, nothing
        has been pushed then.
        """
        self._features = None
        self._again.cache.pop(self._loose_row(), None)  # as it will be another group
        shown = [*self._loose, *zip(frames, seconds, strict=True)]
        groups, loose = whole_groups(shown, self.sight.frames_per_look)
        growing: list[list[Any]] = [self.seconds, self.repeats.rows, self._kept, self._pushed]
        lengths = [len(part) for part in growing]
        others = self.shape, self.repeats.last, self._kept_bytes, [*self._pending]
        rows = len(self._cls)
        try:
            for frame, second in groups:
                self.seconds.append(second)
                self.shape = frame.shape[-3:]
                if not self.repeats.is_new(frame):
                    continue
                self._pending.append(frame)
                if self.sight.scout is not None:
                    self._pushed.append(frame)
                if len(self._pending) == self.options.chunk_size:
                    self._add(*self._see(self._first(self._pending)))
                    self._pending = []
        except BaseException:
            for part, length in zip(growing, lengths, strict=True):
                del part[length:]
            self._cls.cut(rows)
            self.shape, self.repeats.last, self._kept_bytes, self._pending = others
            raise
        self._loose = loose
        if loose:
            self.shape = loose[-1][0].shape
        if groups or loose:
            self.last_second = [*seconds][-1]

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on from here, but for a source."""
        with self.lock:
            cls, kept = self._seen()
            rows, seconds = self._rows(len(cls))
            state = {
                "cls": cls,
                "rows": torch.tensor(rows),
                "seconds": torch.tensor(seconds, dtype=torch.float64),
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
        elif path is None:
            self._marks = [_mark(frame) for frame in source.read(np.arange(len(source)))]

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
        numbers, seconds = self._rows(len(cls))
        rows = torch.tensor(numbers, device=cls.device)
        self._lay_out()

        def patches(indices: Tensor) -> Tensor:
            """Of the frames that stand for those asked for."""
            wanted, back = rows[indices.to(rows.device)].unique(return_inverse=True)
            frames = wanted.tolist()
            if kept:
                return in_chunks(kept, frames, cls.device)[back]
            with self.lock:
                return self._again(frames)[back]

        each = getattr(self.sight.layout, "patches_per_frame", None)
        return FrameFeatures(
            cls if len(cls) == len(rows) else cls[rows],
            patches,
            torch.tensor(seconds, dtype=torch.float64),
            patches_per_frame=each,
            beside=getattr(self.sight.layout, "beside", 0),
            layout=self.sight.layout,
            room=each * len(rows) if each is not None and len(rows) > 1 else None,
        )

    def _rows(self, seen: int) -> tuple[list[int], list[float]]:
        """Which of the rows that were seen is each frame's, and when it is shown."""
        if not self._loose:
            return self.repeats.rows, self.seconds
        return [*self.repeats.rows, seen - 1], [*self.seconds, self._loose_group()[1]]

    def _loose_row(self) -> int:
        """Which of the rows that were seen is that of a group that is not whole yet."""
        return self.repeats.rows[-1] + 1 if self.repeats.rows else 0

    def _loose_group(self) -> Shown:
        return one_group(self._loose, self.sight.frames_per_look)

    def _seen(self) -> tuple[Tensor, list[Tensor]]:
        """(n, C) features, and the patches of each chunk that are kept."""
        pending = [*self._pending]
        if self._loose:
            pending.append(self._loose_group()[0])
        if not pending:
            return self._cls.tensor, [*self._kept]
        # Looked at for now, and once more when the chunk is whole.
        cls, patches = self._see(self._first(pending))
        if len(self._cls):
            cls = torch.cat([self._cls.tensor, cls])
        return cls, self._kept if patches is None else [*self._kept, patches]

    def _first(self, frames: Sequence[Frames], *, is_image: bool = False) -> Tensor:
        """What the first look at these frames is at."""
        self._lay_out(frames[0])
        return self.sight.first(frames, is_image=is_image)

    def _lay_out(self, frame: Frames | None = None) -> None:
        """Before any frame becomes pixels the host is told of what size they are."""
        if self.sight.layout is not None or not self.sight.lays_out:
            return
        source = self.source
        if frame is None:
            assert source is not None
            frame = next(source.read(np.arange(1)))
        count = len(self) if source is None else len(source)
        self.sight.lay_out(frame, max(count, 1), source is not None and source.is_image)

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
        fits = len(self) <= encoding.KEEP_FRAMES and len(self) * frame_bytes <= room
        return how == "keep" or (how == "auto" and fits)

    def check_source(self, *, whole: bool = False) -> None:
        """VideoError for a file or folder that is not what it was when it was seen.

        Args:
            whole: look at every frame of what is in memory, which shows no sign of a change.
        """
        if self.source is None:
            return
        if path_stamp(self.path) != self._stamp:
            raise VideoError(_changed(self.source))
        if whole and self._marks:
            for _ in self._as_seen(self.source, np.arange(len(self.source))):
                pass

    def _read_chunks(self, source: FrameSource, progress: Progress | None) -> Iterator[Tensor]:
        new: list[Frames] = []
        for done, frame in enumerate(_decoded(source, np.arange(len(source))), start=1):
            if self.path is None:
                self._marks.append(_mark(frame))
            if self.repeats.is_new(frame):
                new.append(frame)
            if progress is not None:
                progress(done, len(source))
            if new and (len(new) == self.options.chunk_size or done == len(source)):
                yield self._first(new, is_image=source.is_image)
                new = []

    def _read_again(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """(1, 3, S, S) pixels of frames that were looked at before."""
        if self.source is None:
            for row in rows:
                # Behind all whole groups may stand one that is not whole yet.
                whole = row < len(self._pushed)
                frame = self._pushed[row] if whole else self._loose_group()[0]
                yield self.sight.pixels([frame])
            return
        self.check_source()
        first = np.searchsorted(self.repeats.rows, rows)  # rows never decrease
        try:
            for frame in self._as_seen(self.source, first):
                yield self.sight.pixels([frame], is_image=self.source.is_image)
        except SourceChanged as change:
            raise VideoError(_changed(self.source)) from change

    def _as_seen(self, source: FrameSource, positions: Indices) -> Iterator[Frames]:
        """The frames at these positions; VideoError for one in memory that has been changed."""
        frames = _decoded(source, positions)
        if not self._marks:
            yield from frames
            return
        for frame, position in zip(frames, positions.tolist(), strict=True):
            if _mark(frame) != self._marks[position]:
                raise VideoError(_changed(source))
            yield frame


def _decoded(source: FrameSource, positions: Indices) -> Iterator[Frames]:
    """The frames at these positions, the time that each takes booked as decoding."""
    frames = source.read(positions)
    while True:
        with stage("decode", on_device=False):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _mark(frame: Frames) -> int:
    """By which a frame in memory is known again; a change is not meant to hide from it."""
    return zlib.crc32(np.ascontiguousarray(frame).data)


def _changed(source: FrameSource) -> str:
    return f"{source.source}: has changed, or gone, since it was seen"
