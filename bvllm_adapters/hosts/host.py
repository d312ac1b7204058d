"""What a host says about the models it serves: the protocol that integrations are written for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.features import FrameFeatures, VisualTokens

API = 3


class HostError(ValueError):
    """No host, a broken one, or several for one class; says which distribution is to blame."""


class Host(Protocol):
    """What a host says about the models it serves.

    Where its models can be trained here, it has `training(processor) -> HostTraining`, see
    `bvllm_adapters.training.host`.

    Where its tower takes several frames as one, it has `frames_per_look(model, processor)`, which
    says how many; all that is said of frames is then of these groups. Where pixels or prompts
    depend on the size of a video's frames or on the budget, it has `layout(model, processor,
    height, width, groups, *, is_image)`: whatever it wants to know again, handed back to it as
    `pixels(..., layout=)` and as `VisualTokens.layout`; but for `patches_per_frame`, P, nobody
    else looks into it.

    For `bvllm hosts --certify` it may have `tiny(folder, name)`, which writes a tiny random
    checkpoint of the model class with its processor, and, unless `training` says enough,
    `call(model, processor, videos, questions, *, answers=None, padding_side="left",
    to="forward")`: the arguments of the model's own forward(), or of generate(), for a batch of
    prompts as its users make them. Each is about one `Video`, or about none (None); `answers`
    stand behind the prompts, in input_ids. For what its models do not take it raises
    NotImplementedError with the reason.

    For other engines, see `bvllm_adapters.engines`: where prompts are a line of embeddings to a
    language model that can do without the rest, it has `prompt_ids(processor, questions, *,
    history=None, system=None)`, the (L,) ids of each prompt, with one of `placeholders(model)`
    where its visual tokens stand; `language_model(model)`, what reads them, whose class derives
    from one of transformers; and `save_tokenizer(processor, folder)`, as transformers has it. Where
    engines serve its models themselves and take visual tokens of images, it has
    `image_embeds(model, tokens)`: (N, D) those of frames and (t, D) those of none, or a HostError
    with the reason why not.

    For `bvllm bench` it may have: `own_way(model) -> OwnWay`, how its models go without a budget;
    `published`, model class -> fields of the config that was published; and
    `parts(name, fields) -> (model class, config, processor)` of a model of such fields.
    """

    api: int
    """The version of this protocol it was written for: 3."""

    overrides: type
    """A mixin whose methods replace the model's while it is wrapped; they use
    `self.balanced_tokenizer`. Each begins with a list of what it changes."""

    def load(self, folder: Path, *, dtype: torch.dtype, **options: Any) -> nn.Module:
        """The model of a published checkpoint folder, complete or an error. A host whose
        checkpoints may hold only part of a model takes `base=`, where the rest is."""

    def processor(self, folder: Path) -> Any:
        """What `pixels` and `answers` need beside the model: tokenizer and image processor."""

    def config(self, model: Any) -> BalancedTokenizerConfig:
        """Settings that fit this model: its widths, whether its tower has a CLS token, and the
        `vocabulary` of the question, where its checkpoint brings WordPieces of its own."""

    def tower(self, model: Any) -> nn.Module:
        """The vision encoder, a part of the model."""

    def pixels(
        self, processor: Any, frames: npt.NDArray[np.uint8], *, is_image: bool = False
    ) -> Tensor:
        """(k, H, W, 3) RGB frames of a video, or an image -> (k, ...) pixels of the tower, such as
        (k, 3, S, S). Of groups of n frames: (k, n, H, W, 3)."""

    def look(self, model: Any, pixels: Tensor) -> FrameFeatures:
        """(k, ...) pixels -> (k, C) a feature of each frame, (k, P, C) its patches.

        The feature is what the config's `frame_feature` says: the tower's CLS token, or the mean
        or maximum of the patches; `bvllm_adapters.features.frame_and_patches` takes them apart.
        """

    def answers(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[str],
        tokens: Sequence[VisualTokens],
        **generate: Any,
    ) -> list[str]:
        """What the model says to each question, of its visual tokens; in one batch.

        `generate` goes to its generate(); `bvllm_adapters.hosts.generation` says what settings
        count, and gathers `num_return_sequences` texts to each question, one after another. A host
        whose prompts have a place for them takes `history=`, to each question the (question,
        answer) of earlier turns, in the first of which its visual tokens stand, and `system=`.
        """


@dataclass(frozen=True)
class OwnWay:
    """How a host makes visual tokens without a budget.

    Args:
        name: for people. see: (k, 3, S, S) pixels -> (k, P, C) features, by the tower.
        make: (T, P, C) features and the question -> (N, D) visual tokens.
    """

    name: str
    see: Callable[[Tensor], Tensor]
    make: Callable[[Tensor, str], Tensor]
