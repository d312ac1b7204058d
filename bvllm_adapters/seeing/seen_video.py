"""A video as a model has seen it: filled from a source or pushed as it comes, and saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bvllm_adapters.features import FrameFeatures
from bvllm_adapters.hosts.base import base_model, tokenizer_of
from bvllm_adapters.hosts.find import host_of, processor_of
from bvllm_adapters.seeing.encoded_video import EncodedVideo
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.seeing.saved_video import Origin, save_features
from bvllm_adapters.seeing.seen_by import (
    PIXELS,
    differences,
    identity,
    pixels_made,
    settings_of,
    stamps_of,
)
from bvllm_adapters.seeing.sight import Sight
from bvllm_adapters.video.read import open_source


class SeenVideo:
    """A video, image or stream as a model has seen it; several threads may push and ask.

    Args:
        model, processor, encoding: see `bvllm_adapters.open_video`.
        fps: of frames that are pushed without times.
    """

    def __init__(
        self, model: nn.Module, processor: Any, encoding: Encoding | None, fps: float
    ) -> None:
        base = base_model(model)
        tokenizer_of(base)
        encoding = Encoding() if encoding is None else encoding
        if not isinstance(encoding, Encoding):
            raise TypeError(f"encoding: got {encoding!r}, wanted an Encoding or None")
        if not 0 < fps < math.inf:
            raise ValueError(f"fps: got {fps}, wanted a finite number > 0 for a stream")
        self.model, self.host, self.fps = base, host_of(base), fps
        self.processor = processor_of(base) if processor is None else processor
        self.origin = Origin()
        self.encoded = EncodedVideo(Sight(self.host, base, self.processor), encoding)
        self._lock = self.encoded.lock
        self._remember_model()

    def _remember_model(self) -> None:
        """By what the video is seen."""
        self._settings = settings_of(self.host, self.model) | self._pixels()
        self._stamps = stamps_of(self.host, self.model)

    @property
    def features(self) -> FrameFeatures:
        """Of all frames so far; patches are a function of frame indices.

        Raises:
            ValueError: there are no frames, or the model has become another since it saw them.
        """
        with self._lock:
            self._check_seen()
            return self.encoded.features

    def _check_seen(self) -> None:
        if not len(self):
            raise ValueError("video: got no frames, wanted at least one; push() some first")
        self._check_model(self._pixels())

    def _pixels(self) -> dict[str, Any]:
        return pixels_made(self.host, self.processor)

    def _check_model(self, more: Mapping[str, Any]) -> None:
        """ValueError for one that has changed since; `more` settings are compared than its own."""
        now = {**settings_of(self.host, self.model), **more}
        for name, before, after in differences(self._settings, now):
            raise ValueError(
                f"{'processor' if name == PIXELS else 'model'}: got {name} {after}, wanted "
                f"{before} as when it saw the video; open it again"
            )
        for name, stamp in stamps_of(self.host, self.model).items():
            if stamp != self._stamps[name]:
                raise ValueError(
                    f"model: got other {name}, wanted those that saw the video; open it again"
                )

    @property
    def tower_passes(self) -> int:
        """Frames that went through the vision tower so far, those seen again included."""
        return self.encoded.sight.tower_passes

    def __len__(self) -> int:
        with self._lock:
            return len(self.encoded)

    @torch.no_grad()
    def push(self, frames: Any, seconds: Sequence[float] | None = None) -> None:
        """See more frames of a stream.

        Args:
            frames: (T, H, W, 3) or (H, W, 3) uint8, a PIL image or a list of them, of the size of
                those before. They are copied: what becomes of them later changes nothing.
            seconds: their times, increasing, after those before; None: `fps` goes on.

        Raises:
            ValueError: for wrong frames or times, or a video that was not opened as a stream;
                nothing has changed then.
        """
        with self._lock:
            self._push(frames, seconds)

    def _push(self, frames: Any, seconds: Sequence[float] | None) -> None:
        encoded = self.encoded
        if encoded.source is not None:
            raise ValueError(
                f"frames: got more of {encoded.source.source}, wanted a video opened as a stream"
            )
        source = open_source(frames, fps=self.fps)
        new = [frame.copy() for frame in source.read(np.arange(len(source)))]
        last = -1 / self.fps if encoded.last_second is None else encoded.last_second
        if seconds is None:
            times = [last + (i + 1) / self.fps for i in range(len(new))]
        else:
            times = [float(second) for second in seconds]
        if len(times) != len(new):
            raise ValueError(f"seconds: got {len(times)} times, wanted {len(new)} as frames")
        if not (np.isfinite(times).all() and (np.diff([last, *times]) > 0).all()):
            raise ValueError(f"seconds: got {times} after {last:g}, wanted them to increase")
        if len(encoded):  # its pixels are looked at a chunk at a time, as are the frames
            self._check_model(self._pixels() if encoded.fills_chunk(len(new)) else {})
        else:
            self._remember_model()
        for frame in new:
            if encoded.shape is not None and frame.shape != encoded.shape:
                raise ValueError(
                    f"frames: got one of {frame.shape}, wanted {encoded.shape} as before"
                )
        encoded.push(new, times)

    def save(self, file: str | Path) -> None:
        """Write what was seen to one safetensors file, for `load_video`.

        It holds patches too where they are kept; else the video will be read again for those of
        chosen frames, and must be as it is now.

        Raises:
            ValueError: nothing was seen, or a scout saw a stream, which cannot be read again.
            VideoError: the video is needed, and is not what it was when it was seen.
        """
        with self._lock:
            self._check_seen()
        seen_by = identity(self.host, self.model, self.processor)
        save_features(file, self.encoded, seen_by, self.origin)
