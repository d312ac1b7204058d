"""How one model sees: frames to pixels, pixels to features.

Axes: k frames, H and W of the picture, S the tower's image size, P patches, C vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bvllm_adapters.hosts.evaluating import evaluating
from bvllm_adapters.ledger import stage
from bvllm_adapters.video.frames import Frames


class Sight:
    """How one model sees: frames to pixels, pixels to features; each step booked in the ledger.

    It sees as in evaluation, whatever mode it is in.

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
        with stage("tower"), evaluating(self.model):
            self.tower_passes += len(pixels)
            feature, patches = self.host.look(self.model, pixels)
            return feature, patches

    @torch.no_grad()
    def glance(self, pixels: Tensor) -> Tensor:
        """(k, 3, S, S) -> (k, C') features that frames are chosen by: the scout."""
        with stage("scout"), evaluating(self.model):
            feature: Tensor = self.scout(pixels, partial(self.host.look, self.model))
            return feature
