"""A scout: a cheaper look at each frame, whose features choose the frames that the tower sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bvllm_adapters.config import ScoutConfig
from bvllm_adapters.features import FrameFeatures
from bvllm_adapters.weights.image_models import UnknownModel, timm_model, transformers_model

Look = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(k, 3, s, s) pixels -> (k, C) frame features, (k, P, C) patches: a host's vision tower."""


class Scout(nn.Module):
    """The tower's pixels, scaled down, through a smaller encoder, to a feature a frame.

    The encoder is an image model of timm's or transformers' with random weights. Pretrained ones
    go in by `scout.encoder.load_state_dict(weights, strict=False)` (not strict, as buffers that its
    library does not save are saved here), and are part of an adapter from then on. The encoder
    gets pixels normalised as the tower wants them, which may not be how it was pretrained.
    Without an architecture it is the tower that sees the smaller pixels first.

    Like the tower it is not trained by `bvllm train`; the frame selector is, on its features.

    Axes: k frames, S the tower's image size, s the scout's, C' its width.

    Raises:
        ValueError: an unknown architecture, arguments or an image size that it does not take, or
            another width than it has.
    """

    def __init__(self, config: ScoutConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        name = config.architecture
        self.encoder: Any = None if name is None else build_encoder(name, config)
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> Scout:
        """Modifications: stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, look: Look | None = None) -> Tensor:
        """(k, 3, S, S) pixels of the tower -> (k, C') features.

        Args:
            look: the tower; only a scout without an encoder of its own needs it.
        """
        small = self.smaller(pixels)
        if self.encoder is not None:
            return pooled(self.encoder, small)
        if look is None:
            raise ValueError("look: got None, wanted the tower, as the scout has no encoder")
        return look(small.to(pixels.dtype))[0]

    def smaller(self, pixels: Tensor) -> Tensor:
        """(k, 3, S, S) -> (k, 3, s, s) float32, where the encoder is."""
        device = next((weight.device for weight in self.parameters()), pixels.device)
        side = (self.image_size, self.image_size)
        return F.interpolate(pixels.to(device).float(), side, mode="bilinear", antialias=True)


def pooled(encoder: Any, pixels: Tensor) -> Tensor:
    """(k, 3, s, s) pixels -> (k, C') the one feature of each that the encoder makes of it."""
    out = encoder(pixels.to(next(encoder.parameters()).dtype))
    feature: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return feature.flatten(1)


def build_encoder(name: str, config: ScoutConfig) -> nn.Module:
    """An image model with random weights, which was tried on an image of the config's size.

    One that is made without weights, to be filled from a file, cannot be tried.
    """
    make = timm_model if config.library == "timm" else transformers_model
    with torch.no_grad():
        try:
            encoder = make(name, config.model_args).eval()
            size, width = config.image_size, config.width
            if not any(weight.is_meta for weight in encoder.parameters()):
                width = pooled(encoder, torch.zeros(1, 3, size, size)).shape[1]
        except UnknownModel as error:
            raise ValueError(f"scout.architecture: {error}") from error
        except Exception as error:  # each architecture raises what it likes
            raise ValueError(
                f"scout.image_size, scout.model_args: got {config.image_size} and "
                f"{dict(config.model_args)}, wanted what {name} takes ({error})"
            ) from error
    if width != config.width:
        raise ValueError(f"scout.width: got {config.width}, wanted {width} as {name} has")
    for module in encoder.modules():
        # Buffers that are not saved could not be filled when a model is loaded without first being
        # built with values, so all of them are saved.
        for buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(*buffer)
    return encoder


def check_widths(
    features: Sequence[FrameFeatures], patches: int, *, cls: int | None, cls_name: str
) -> None:
    """ValueError unless patches have this width, and frame features have `cls` if it is given."""
    for i, video in enumerate(features):
        if cls is not None and video.cls.shape[1] != cls:
            raise ValueError(
                f"features[{i}].cls: got width {video.cls.shape[1]}, wanted {cls_name}={cls}"
            )
        if isinstance(video.patches, Tensor) and video.patches.shape[2] != patches:
            raise ValueError(
                f"features[{i}].patches: got width {video.patches.shape[2]}, "
                f"wanted vision_width={patches}"
            )
