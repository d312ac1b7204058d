"""How one model sees: frames to pixels, pixels to features.

Axes: k frames, H and W of the picture, S the tower's image size, P patches, C vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bvllm_adapters.features import FrameFeatures
from bvllm_adapters.hosts.evaluating import evaluating
from bvllm_adapters.ledger import stage
from bvllm_adapters.selectors.choosing import sees
from bvllm_adapters.video.frames import Frames
from bvllm_adapters.weights.device import device_of

PICTURE_BYTES = 2**26  # of pictures that a selector sees at a time


class Sight:
    """How one model sees: frames to pixels, pixels to features; each step booked in the ledger.

    It sees as in evaluation, whatever mode it is in.

    Args:
        host, model, processor: see `bvllm_adapters.hosts.Host`; the model has its tokenizer.
    """

    def __init__(self, host: Any, model: Any, processor: Any) -> None:
        self.host, self.model, self.processor = host, model, processor
        self.layout: Any = None
        self.tower_passes = 0
        self.scout_passes: int | None = None  # None: there is no scout

    @property
    def frames_per_look(self) -> int:
        """How many frames the tower takes as one."""
        of = getattr(self.host, "frames_per_look", None)
        return 1 if of is None else int(of(self.model, self.processor))

    @property
    def lays_out(self) -> bool:
        """Whether pixels depend on what kind of video they are of."""
        return hasattr(self.host, "layout")

    def lay_out(self, frame: Frames, count: int, is_image: bool) -> None:
        """Ask the host what it wants to know of a video of `count` groups of frames like this."""
        height, width = frame.shape[-3:-1]
        self.layout = self.host.layout(
            self.model, self.processor, height, width, count, is_image=is_image
        )

    @property
    def tokenizer(self) -> Any:
        return self.model.balanced_tokenizer

    @property
    def scout(self) -> Any:
        """What gives the features that frames are chosen by, in place of the tower: a scout, which
        is shown the tower's pixels, or a selector that sees pictures. None: the tower does."""
        selector = self.tokenizer.frame_selector
        return selector if sees(selector) else self.tokenizer.scout

    def first(self, frames: Sequence[Frames], *, is_image: bool = False) -> Tensor:
        """(H, W, 3) uint8 frames of one size, or groups -> what the first look is at: pixels, or
        (k, n, H, W, 3) uint8 of n frames each for a selector that sees pictures."""
        if self.scout is None or self.scout is self.tokenizer.scout:
            return self.pixels(frames, is_image=is_image)
        groups = torch.from_numpy(np.stack(frames))
        return groups if groups.dim() == 5 else groups[:, None]

    def pixels(self, frames: Sequence[Frames], *, is_image: bool = False) -> Tensor:
        """(H, W, 3) uint8 frames of one size, or groups -> (k, ...) pixels of the tower."""
        layout = {} if self.layout is None else {"layout": self.layout}
        with stage("preprocess", on_device=False):
            pixels: Tensor = self.host.pixels(
                self.processor, np.stack(frames), is_image=is_image, **layout
            )
            return pixels

    @torch.no_grad()
    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(k, ...) -> (k, C) frame features, (k, P, C) patches: the whole tower."""
        with stage("tower"), evaluating(self.model):
            self.tower_passes += len(pixels)
            return self._look(pixels)

    def _look(self, pixels: Tensor) -> tuple[Tensor, Any]:
        features: FrameFeatures = self.host.look(self.model, pixels)
        return features.cls, features.patches

    @torch.no_grad()
    def glance(self, first: Tensor) -> Tensor:
        """(k, ...) of `first` -> (k, C') features that frames are chosen by: the scout's."""
        with stage("scout"), evaluating(self.model):
            scout = self.scout
            self.scout_passes = (self.scout_passes or 0) + len(first)
            if scout is self.tokenizer.scout:
                feature: Tensor = scout(first, self._look)
                return feature
            device = next((weight.device for weight in scout.parameters()), first.device)
            # Not all of a chunk at once: as numbers from 0 to 1 pictures are large.
            some = max(1, PICTURE_BYTES // (4 * first[0, 0].numel()))
            seen = [
                scout.see(part.to(device).movedim(-1, 1).float() / 255)
                for part in first.flatten(0, 1).split(some)
            ]
            feature = torch.cat(seen).unflatten(0, first.shape[:2]).mean(dim=1)
            return feature.to(device_of(self.model.get_input_embeddings()))
