"""What is certified: a model with its host and processor, and videos to show it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bvllm_adapters.certify.calls import own_call
from bvllm_adapters.certify.report import NotApplicable
from bvllm_adapters.certify.spies import asked_of, not_words, read_by
from bvllm_adapters.config import BalancedTokenizerConfig
from bvllm_adapters.conversation import OpenVideo, open_video
from bvllm_adapters.features import VisualTokens
from bvllm_adapters.hosts.host import Host, HostError
from bvllm_adapters.hosts.wrap import unwrap, wrap
from bvllm_adapters.hosts.wrapped import Wrapped
from bvllm_adapters.video.frames import Video
from bvllm_adapters.video.read import read_video

QUESTION = "Who is behind the large tree, and what happens then?"
OTHER = "Why?"
PLENTY = 10**6  # visual tokens; more than any video here has
NEW: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
# Of stages that are trained: a few frames, of which there are more, and a few tokens of each.
SMALL: dict[str, Any] = {
    "num_frames": 4, "tokens_per_frame": 3, "max_tokens": 9, "qformer_width": 24,
    "qformer_layers": 2, "qformer_heads": 2, "qformer_ffn_width": None,
}  # fmt: skip


class Subject:
    """A model under certification. It is wrapped and unwrapped in place, and left as it came.

    Args:
        model: not wrapped. processor: its host's. host: what serves it.
        name: the host as "module:OBJECT"; None: the published one.
        folder: where the model lies, if it was loaded.
        asked_for: the class that the model should be of; None: any.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        host: Host,
        *,
        name: str | None = None,
        folder: Path | None = None,
        asked_for: str | None = None,
    ) -> None:
        self.model, self.processor, self.host = model, processor, host
        self.name, self.folder, self.asked_for = name, folder, asked_for

    @cached_property
    def video(self) -> Video:
        """Eight frames of a real clip at uneven times."""
        with as_file(files("bvllm_adapters.data") / "big_buck_bunny.mp4") as clip:
            whole = read_video(clip, fps=4.0)
        chosen = np.unique((np.linspace(0, 1, 8) ** 1.5 * (len(whole.frames) - 1)).astype(int))
        return replace(whole, frames=whole.frames[chosen], seconds=whole.seconds[chosen])

    @cached_property
    def other(self) -> Video:
        """As many frames at the same times: the clip backwards, and left for right."""
        return replace(self.video, frames=self.video.frames[::-1, :, ::-1].copy())

    @cached_property
    def short(self) -> Video:
        """The first three frames."""
        return replace(self.video, frames=self.video.frames[:3], seconds=self.video.seconds[:3])

    @cached_property
    def picture(self) -> Any:
        return self.video.frames[4]

    @cached_property
    def learned(self) -> bool:
        """Whether the host's own settings have stages that are trained."""
        config = self.host.config(self.model)
        return config.selector == "learned" or config.sampler != "none"

    @cached_property
    def config(self) -> BalancedTokenizerConfig:
        """Of a small tokenizer: the host's own settings, and a budget that is less than there is.

        Without training that is a third of what the host itself makes of the video.
        """
        fitting = self.host.config(self.model)
        if self.learned:
            return replace(fitting, **SMALL)
        with self.wrapped(replace(fitting, max_tokens=PLENTY)):
            try:
                own = len(self.tokens(self.open(self.video)))
            except NotApplicable:
                own = len(self.seen_in(self.read(self.call([self.video]))[0]))
        return replace(fitting, max_tokens=max(own // 3, 2))

    @property
    def budget(self) -> int:
        assert self.config.max_tokens is not None
        return self.config.max_tokens

    @contextmanager
    def wrapped(
        self, config: BalancedTokenizerConfig | None = None, model: Any = None, **settings: Any
    ) -> Iterator[Any]:
        """The model under a budget inside the block; as it was after it.

        New weights are drawn by a seed, and louder than those that training begins with, so that
        what goes in can be told from what comes out.

        Args:
            settings: of `wrap`, in place of a config.
        """
        model = self.model if model is None else model
        how = settings or {"config": self.config if config is None else config}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            wrap(model, host=self.name, **how)
            if "adapter" not in how:
                for weights in model.balanced_tokenizer.trained_parameters():
                    if weights.dim() > 1:
                        nn.init.normal_(weights, std=0.15)
        model.eval()
        try:
            yield model
        finally:
            if issubclass(type(model), Wrapped):
                unwrap(model)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def needs_float32(self) -> None:
        """NotApplicable for a coarser model, of which rounding cannot be told from a fault."""
        if self.dtype != torch.float32:
            raise NotApplicable(f"it is held in float32, and the model is in {self.dtype}")

    def copy(self) -> Any:
        """Another model of the same weights."""
        return copy.deepcopy(self.model)

    def open(self, video: Any, model: Any = None, **how: Any) -> OpenVideo:
        """A video as the model sees it.

        Raises:
            NotApplicable: the host refuses to read videos for this model, which is served in calls
                of its own alone.
        """
        model = self.model if model is None else model
        try:
            return open_video(model, video, processor=self.processor, **how)
        except HostError as reason:
            raise NotApplicable(str(reason)) from reason

    @torch.no_grad()
    def tokens(
        self, opened: OpenVideo, question: str = QUESTION, max_tokens: int | None = None
    ) -> VisualTokens:
        """What the model's tokenizer makes of a video that it has seen."""
        tokenizer: Any = opened.model.balanced_tokenizer
        made: list[VisualTokens] = tokenizer([opened.features], [question], max_tokens=max_tokens)
        return made[0]

    def call(
        self,
        videos: Sequence[Video | None],
        questions: Sequence[str] = (QUESTION,),
        model: Any = None,
        **how: Any,
    ) -> dict[str, Any]:
        """Arguments of the model's own forward() or generate(); see `own_call`."""
        model = self.model if model is None else model
        return own_call(self.host, model, self.processor, videos, questions, **how)

    @torch.no_grad()
    def forward(self, inputs: dict[str, Any], model: Any = None) -> Any:
        return (self.model if model is None else model)(**inputs)

    def new_ids(self, inputs: dict[str, Any], **how: Any) -> Tensor:
        """(B, 5) ids that the model's own generate() says, whether or not the prompt's come too."""
        out = self.model.generate(**inputs, **{**NEW, "min_new_tokens": 5, **how})
        ids: Tensor = out if isinstance(out, Tensor) else out.sequences
        return ids[:, -5:]

    def read(
        self, inputs: dict[str, Any], to: str = "forward"
    ) -> tuple[Tensor, list[VisualTokens]]:
        """(S, D) what the language model reads of one prompt, and what the tokenizer made.

        Raises:
            NotApplicable: it cannot be seen.
        """
        tower = self.host.tower(self.model)
        with read_by(self.model, tower) as read, asked_of(self.model) as calls:
            if to == "forward":
                self.forward(inputs)
            else:
                self.new_ids(inputs)
        return self._first(read), [each for _, made in calls for each in made]

    def read_answering(self, opened: OpenVideo) -> tuple[Tensor, list[VisualTokens]]:
        """The same of a question to a video that the model has seen."""
        with (
            read_by(self.model, self.host.tower(self.model)) as read,
            asked_of(self.model) as calls,
        ):
            opened.ask(QUESTION, **NEW)
        return self._first(read), [each for _, made in calls for each in made]

    def _first(self, read: list[Tensor]) -> Tensor:
        if not read:
            raise NotApplicable("no part of the model with `layers` is called with inputs_embeds")
        return read[0][0]

    def seen_in(self, prompt: Tensor) -> Tensor:
        """(N, D) what of a prompt is no word."""
        return prompt[not_words(self.model, prompt)]
