"""Frames that nobody has looked at: evenly spread, or at random."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from bvllm_adapters.checks import check_count
from bvllm_adapters.features import Selection
from bvllm_adapters.selectors.choosers import evenly
from bvllm_adapters.selectors.coverage import check_frames


def nothing_of(selector: nn.Module, frames: Tensor) -> Tensor:
    """(k, 3, H, W) -> (k, 1) zeros."""
    return frames.new_zeros(len(frames), 1)


class UniformSelector(nn.Module):
    """The middle frame of each of K equal parts of the T frames."""

    name = "uniform"
    sees = True
    reads_question = False
    blind = True  # the number of frames is all that is needed: none has to be read

    see = nothing_of

    def forward(
        self,
        cls: Tensor,
        question: str,
        *,
        seconds: Tensor,
        num_frames: int,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """(T, C') anything of all frames -> min(K, T) different whole frames in time order.

        Raises:
            ValueError, TypeError: naming the argument, what came and what was wanted.
        """
        check_frames(cls, seconds, num_frames)
        return Selection.whole(evenly(len(cls), num_frames).to(cls.device), len(cls))


class RandomSelector(nn.Module):
    """Any K frames, each as likely as any other.

    The same in evaluation for the same seed, question and number of frames, whatever the device;
    in training anew each time.
    """

    name = "random"
    sees = True
    reads_question = True  # each question gets frames of its own
    blind = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = check_count("seed", seed, least=0)

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments, as JSON."""
        return {"seed": self.seed}

    see = nothing_of

    def forward(
        self,
        cls: Tensor,
        question: str,
        *,
        seconds: Tensor,
        num_frames: int,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """(T, C') anything of all frames -> min(K, T) different whole frames in time order.

        Args:
            generator: of training; None: torch's own.

        Raises:
            ValueError, TypeError: naming the argument, what came and what was wanted.
        """
        check_frames(cls, seconds, num_frames)
        count = len(cls)
        if not self.training:
            words = f"{self.seed} {count} {question}".encode(errors="surrogatepass")
            seed = int.from_bytes(hashlib.sha256(words).digest()[:7], "big")
            generator = torch.Generator().manual_seed(seed)
        device = generator.device if generator is not None else "cpu"
        order = torch.randperm(count, generator=generator, device=device)
        frames = order[:num_frames].sort().values.to(cls.device)
        return Selection.whole(frames, count)

    def extra_repr(self) -> str:
        return f"seed={self.seed}"
