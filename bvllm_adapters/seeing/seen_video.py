"""A video as a model has seen it: filled from a source or pushed as it comes, and saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bvllm_adapters.features import FrameFeatures
from bvllm_adapters.hosts.adapter import base_model, tokenizer_of
from bvllm_adapters.hosts.find import host_of, processor_of
from bvllm_adapters.seeing.encoded_video import EncodedVideo
from bvllm_adapters.seeing.encoding import Encoding
from bvllm_adapters.seeing.saved_video import Origin, identity, save_features, settings_of
from bvllm_adapters.seeing.sight import Sight
from bvllm_adapters.video.read import open_source


class SeenVideo:
    """A video, image or stream as a model has seen it.

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
        self._settings = settings_of(self.host, base)

    @property
    def features(self) -> FrameFeatures:
        """Of all frames so far; patches are a function of frame indices.

        Raises:
            ValueError: there are no frames, or the model has become another since it saw them.
        """
        if not len(self):
            raise ValueError("video: got no frames, wanted at least one; push() some first")
        self._check_model()
        return self.encoded.features

    def _check_model(self) -> None:
        now = settings_of(self.host, self.model)
        for name, before in self._settings.items():
            if now[name] != before:
                raise ValueError(
                    f"model: got {name} {now[name]}, wanted {before} as when it saw the video; "
                    "open it again"
                )

    @property
    def tower_passes(self) -> int:
        """Frames that went through the vision tower so far, those seen again included."""
        return self.encoded.sight.tower_passes

    def __len__(self) -> int:
        return len(self.encoded)

    @torch.no_grad()
    def push(self, frames: Any, seconds: Sequence[float] | None = None) -> None:
        """See more frames of a stream.

        Args:
            frames: (T, H, W, 3) or (H, W, 3) uint8, a PIL image or a list of them, of the size of
                those before.
            seconds: their times, increasing, after those before; None: `fps` goes on.

        Raises:
            ValueError: for wrong frames or times, or a video that was not opened as a stream;
                nothing has changed then.
        """
        encoded = self.encoded
        self._check_model()
        if encoded.source is not None:
            raise ValueError(
                f"frames: got more of {encoded.source.source}, wanted a video opened as a stream"
            )
        source = open_source(frames, fps=self.fps)
        new = list(source.read(np.arange(len(source))))
        last = encoded.seconds[-1] if encoded.seconds else -1 / self.fps
        if seconds is None:
            times = [last + (i + 1) / self.fps for i in range(len(new))]
        else:
            times = [float(second) for second in seconds]
        if len(times) != len(new):
            raise ValueError(f"seconds: got {len(times)} times, wanted {len(new)} as frames")
        if not (np.isfinite(times).all() and (np.diff([last, *times]) > 0).all()):
            raise ValueError(f"seconds: got {times} after {last:g}, wanted them to increase")
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
        if not len(self):
            raise ValueError("video: got no frames, wanted at least one; push() some first")
        self._check_model()
        save_features(file, self.encoded, identity(self.host, self.model), self.origin)
